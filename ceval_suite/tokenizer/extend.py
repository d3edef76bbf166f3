"""A tokenizer with new pieces: old ids as they were, what is made of it proved and written.

`extend` makes the vocabulary, `measure` says what it does to texts, `write` makes a directory
that this package and plain transformers open alike, with `extension.json` about where it is from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

from ceval_suite.backends.lexicon import Lexicon
from ceval_suite.backends.sources import tokenizer_fingerprint
from ceval_suite.errors import ModelError
from ceval_suite.tokenizer import byte_pairs, sentence_pieces
from ceval_suite.tokenizer.pieces import check, read_proto, refuse
from ceval_suite.tokenizer.sentence_pieces import Grown, Outside, Scores
from ceval_suite.tokenizer.training import speller

PROBES = (
    "The quick brown fox, 2023 and 3.14.",
    "  two  blanks,   three    four\t\ttabs\n\n lines ",
    "全角，标点。第１题（　　）",
    "x" + " " * 40 + "y",
    "def f(x):\n    return {x: '▁'}\n",
    "naïve café e\u0301 🙂 ∑ 中",
    "",
)
"""Texts in which forms of one tokenizer may differ: runs of blanks, bytes, combining marks."""

Cutter: TypeAlias = Callable[[Sequence[str]], list[list[int]]]


@dataclass(frozen=True)
class Base:
    """A tokenizer that can be extended, and in which of two ways.

    `proto` is SentencePiece's own message, with its bytes in `model`; without one the merges of
    `definition` are extended.
    """

    lexicon: Lexicon
    proto: Any = None
    model: bytes = b""

    @property
    def byte_level(self) -> bool:
        """Whether tokens are written as the characters that stand for their bytes."""
        return self.proto is None and self.lexicon.kind == "bpe"

    def spell(self, piece: str) -> str:
        """A piece as the vocabulary writes it."""
        return speller(self.byte_level)(piece)

    @cached_property
    def vocabulary(self) -> dict[str, int]:
        """Token → id, those added from outside included."""
        return {str(token): int(i) for token, i in self.lexicon.tokenizer.get_vocab().items()}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids, as the extension's own `encode` gives them."""
        return self._cutter(texts)

    @cached_property
    def _cutter(self) -> Cutter:
        return _cutter(None if self.model else self.lexicon.definition, self.model)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the tokenizer's files, or of its definition where it has none."""
        if self.lexicon.path.exists():
            return tokenizer_fingerprint(self.lexicon.path)
        text = json.dumps(self.lexicon.definition, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Extension:
    """What came of it: new pieces have ids from `first` on, intermediate tokens (`added`) follow.

    `lost` are unreachable pieces, each with the reason. `definition` is the `tokenizer.json`, None
    where none can say what the SentencePiece `model` does; `model` is empty for other bases.
    """

    base: Base
    scores: Scores | None
    first: int
    pieces: tuple[str, ...]
    added: tuple[str, ...]
    merges: int
    lost: Mapping[str, str]
    definition: Mapping[str, Any] | None = field(repr=False)
    model: bytes = field(repr=False)
    note: str = ""

    @property
    def size(self) -> int:
        """Number of ids, up to the last."""
        return self.first + len(self.pieces) + len(self.added)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without start and end tokens."""
        return self._cutter(texts)

    @cached_property
    def _cutter(self) -> Cutter:
        return _cutter(None if self.model else self.definition, self.model)


def _cutter(definition: Mapping[str, Any] | None, model: bytes) -> Cutter:
    if definition is None:
        made = sentence_pieces.open_model(model)
        return lambda texts: [list(ids) for ids in made.encode(list(texts))]
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))

    def cut(texts: Sequence[str]) -> list[list[int]]:
        found = core.encode_batch_fast(list(texts), add_special_tokens=False)
        return [list(one.ids) for one in found]

    return cut


def open_base(lexicon: Lexicon) -> Base:
    """See how a tokenizer can be extended.

    Raises:
        ModelError: it cannot, being neither a SentencePiece BPE nor one with a list of merges.
    """
    path = lexicon.path
    file = path / "tokenizer.model" if path.is_dir() else path
    if file.is_file() and (path.is_dir() or lexicon.model is not None):
        raw = file.read_bytes()
        try:
            proto = read_proto(raw, file)
        except ModelError:
            proto = None  # a rank file of the same name, which the tokenizer's merges are made of
        if proto is not None:
            sentence_pieces.require_bpe(proto, lexicon.name)
            return Base(lexicon, proto, raw)
    if lexicon.kind in ("bpe", "bpe-fallback"):
        return Base(lexicon)
    raise ModelError(
        f"{lexicon.name}: a tokenizer of kind {lexicon.kind} cannot be extended; give a "
        "SentencePiece BPE (LLaMA's tokenizer.model) or a byte-level BPE (tokenizer.json)."
    )


def extend(
    lexicon: Lexicon,
    pieces: Sequence[str],
    *,
    scores: Scores = "below",
    add_merges: bool = False,
    texts: Sequence[str] = (),
) -> Extension:
    """A tokenizer with new pieces, in the order given, after all ids that it has.

    `add_merges` adds the intermediate tokens without which some pieces are never reached. `texts`
    are what the slow and the fast form must cut alike, beside the pieces and a few probes.

    Raises:
        DataError: pieces that are none; each is named by its place in the list, from 1.
        ModelError: the tokenizer cannot be extended, or not in this way.
    """
    base = open_base(lexicon)
    listed = list(enumerate(pieces, start=1))
    good, bad = check(listed, base.vocabulary, base.spell)
    refuse("the pieces", bad, "piece")
    if base.proto is not None:
        return _by_scores(base, good, scores, add_merges, texts)
    if scores != "below":
        raise ModelError(
            f"{lexicon.name}: --scores {scores} needs a SentencePiece base; merges of a "
            "tokenizer.json have ranks, and new ones come after the old."
        )
    by_token = {base.spell(piece): piece.replace("▁", " ") for piece in good}
    definition, growth = byte_pairs.grow(lexicon.definition, by_token, add_merges=add_merges)
    names = dict(zip(by_token, good, strict=True))
    return Extension(
        base=base,
        scores=None,
        first=max(base.vocabulary.values(), default=-1) + 1,
        pieces=tuple(good),
        added=tuple(growth.added),
        merges=len(growth.merges),
        lost={names[token]: why for token, why in growth.lost.items()},
        definition=definition,
        model=b"",
    )


def _by_scores(
    base: Base, pieces: list[str], scores: Scores, add_merges: bool, texts: Sequence[str]
) -> Extension:
    outside = [
        Outside(int(i), str(token.content), bool(token.special))
        for i, token in base.lexicon.tokenizer.added_tokens_decoder.items()
        if int(i) >= len(base.proto.pieces)
    ]
    grown = sentence_pieces.grow(base.proto, outside, pieces, scores, add_merges=add_merges)
    probes = [*PROBES, *(piece.replace("▁", " ") for piece in pieces), *texts]
    definition, note = _fast(base, grown, scores, len(pieces), probes)
    alone = [] if add_merges else sentence_pieces.without_piece(base.proto, pieces)
    if definition is None and scores == "below" and alone:
        note += (
            f"; {len(alone)} characters of new pieces have no piece ({' '.join(alone[:20])}): list "
            "them too, or give --add-merges"
        )
    return Extension(
        base=base,
        scores=scores,
        first=grown.first,
        pieces=tuple(pieces),
        added=grown.added,
        merges=0,
        lost=grown.lost,
        definition=definition,
        model=grown.model,
        note=note,
    )


def _fast(
    base: Base, grown: Grown, scores: Scores, new: int, probes: Sequence[str]
) -> tuple[dict[str, Any] | None, str]:
    """The `tokenizer.json` that cuts all probes as the model does, or none, and why not."""
    lost = "no tokenizer.json is written, and plain transformers 5 reads tokenizer.model otherwise"
    if scores == "zero" and new > 1:
        return None, f"new pieces of equal score are joined by position: {lost}"
    template = base.lexicon.definition or None
    if template is None and not sentence_pieces.plain(base.proto):
        return None, f"the model changes texts in ways of its own: {lost}"
    model, proto = grown.model, read_proto(grown.model, base.lexicon.path)
    once = getattr(base.lexicon.tokenizer, "legacy", True) is False
    made = sentence_pieces.fast(proto, template, _frame(base.lexicon), blank_once=once)
    differ: list[bool] = []
    if template is not None:
        pairs = zip(_cutter(template, b"")(probes), base.encode(probes), strict=True)
        differ = [one != two for one, two in pairs]
    wrong = sentence_pieces.agree(made, model, probes, differ)
    if wrong and template is not None:
        made = sentence_pieces.appended(template, proto, grown.first)
        wrong = sentence_pieces.agree(made, model, probes, differ)
    if wrong:
        return None, f"{wrong} of {len(probes)} texts are cut differently by merges: {lost}"
    same = f"tokenizer.json and tokenizer.model cut {len(probes) - sum(differ)} texts alike"
    if any(differ):
        same += f"; {sum(differ)} more were left out, which the base's own forms cut differently"
    if once and template is None:
        same += "; behind a special token and a blank tokenizer.json has one blank more"
    return made, same


def _frame(lexicon: Lexicon) -> dict[str, Any]:
    """Added tokens and post-processor of a `tokenizer.json` for a tokenizer that has none."""
    tokenizer = lexicon.tokenizer
    names = {int(i): str(token) for token, i in tokenizer.get_vocab().items()}
    listed = {int(i): bool(t.special) for i, t in tokenizer.added_tokens_decoder.items()}
    listed |= {int(i): True for i in tokenizer.all_special_ids}
    options = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [
        {"id": i, "content": names[i], **options, "special": special}
        for i, special in sorted(listed.items())
    ]
    (with_special,), (without,) = lexicon.encode(["x"], special=True), lexicon.encode(["x"])
    before = with_special[: with_special.index(without[0])]
    after = with_special[len(before) + len(without) :]

    def one(letter: str, type_id: int) -> list[dict[str, Any]]:
        text = [{"Sequence": {"id": letter, "type_id": type_id}}]
        start = [{"SpecialToken": {"id": names[i], "type_id": type_id}} for i in before]
        end = [{"SpecialToken": {"id": names[i], "type_id": type_id}} for i in after]
        return [*start, *text, *end]

    post = {
        "type": "TemplateProcessing",
        "single": one("A", 0),
        "pair": [*one("A", 0), *one("B", 1)],
        "special_tokens": {
            names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]} for i in {*before, *after}
        },
    }
    return {"added_tokens": added, "post_processor": post}


@dataclass(frozen=True)
class Cut:
    """How texts are cut by an extension: tokens, and texts whose tokens are not the base's.

    `untouched` are those of them that hold no new token all the same.
    """

    scores: str
    tokens: int
    changed: int
    untouched: int


@dataclass(frozen=True)
class Measured:
    """One collection of texts under a base and its extensions."""

    name: str
    texts: int
    characters: int
    base_tokens: int
    cuts: tuple[Cut, ...]


def measure(name: str, texts: Sequence[str], extensions: Sequence[Extension]) -> Measured:
    """What extensions of one base do to texts."""
    before = extensions[0].base.encode(texts)
    cuts: list[Cut] = []
    for one in extensions:
        after = one.encode(texts)
        changed = [new for old, new in zip(before, after, strict=True) if old != new]
        untouched = sum(max(new, default=0) < one.first for new in changed)
        tokens = sum(map(len, after))
        cuts.append(Cut(one.scores or "after", tokens, len(changed), untouched))
    characters = sum(map(len, texts))
    return Measured(name, len(texts), characters, sum(map(len, before)), tuple(cuts))
