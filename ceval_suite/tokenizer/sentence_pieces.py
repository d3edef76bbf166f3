"""New pieces in a SentencePiece BPE, and the `tokenizer.json` that reads a text the same way.

SentencePiece joins the neighbours whose union is the piece of highest score, the leftmost of
equals first. New pieces lie below all old ones, each lower than the one before: what is made of
old pieces is made first, the order of the list decides between new ones, and since no two scores
are equal a list of merges can say the same. With equal scores (`zero`) none can: position decides.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, TypeAlias, cast

from ceval_suite.errors import ModelError
from ceval_suite.tokenizer.byte_pairs import ANCHOR
from ceval_suite.tokenizer.pieces import NORMAL, USER_DEFINED

Scores: TypeAlias = Literal["below", "zero"]
"""below: under the lowest old score, descending; zero: all 0, above every old merge, as
Colossal-LLaMA and Chinese-LLaMA write them."""

BPE, CONTROL = 2, 3
FLOOR = -float(2**23)
"""Scores below this mark pieces as last resorts (LLaMA's runs of blanks have -1e9); float32 has
no room for whole steps much further down."""


@dataclass(frozen=True)
class Outside:
    """A token added to a vocabulary from outside, with its id."""

    id: int
    token: str
    special: bool


@dataclass(frozen=True)
class Grown:
    """A model with new pieces: their ids start at `first`, intermediate ones follow."""

    model: bytes
    first: int
    added: tuple[str, ...]
    lost: dict[str, str]


def require_bpe(proto: Any, name: str) -> None:
    """See that a model joins pieces by score.

    Raises:
        ModelError: it does not.
    """
    if proto.trainer_spec.model_type != BPE:
        raise ModelError(
            f"{name}: this SentencePiece model is no BPE; give a base whose pieces are joined by "
            "score (LLaMA's kind) or a byte-level one."
        )


def grow(
    proto: Any,
    outside: Sequence[Outside],
    pieces: Sequence[str],
    scores: Scores,
    *,
    add_merges: bool,
) -> Grown:
    """A model with all its old ids, tokens from outside in their places, and the new pieces.

    Raises:
        ModelError: tokens from outside leave ids unnamed, or float32 has no room for the scores.
    """
    first = len(proto.pieces) + len(outside)
    expected = range(len(proto.pieces), first)
    for i, one in zip(expected, sorted(outside, key=lambda one: one.id), strict=True):
        if one.id != i:
            raise ModelError(
                f"the base's added token {one.token!r} has id {one.id} and no token has id {i}, "
                "which SentencePiece's format cannot leave free; add tokens up to there first, or "
                "drop that one from the base and add it again afterwards."
            )
    added = dict.fromkeys(without_piece(proto, pieces) if add_merges else ())
    while True:
        model = _build(proto, outside, pieces, list(added), scores)
        lost = unreachable(model, first, pieces)
        unions = ["".join(parts[:2]) for parts in lost.values() if len(parts) > 1]
        more = [union for union in unions if union not in added]
        if not more or not add_merges:
            break
        added |= dict.fromkeys(more)  # each round joins two parts of every piece: it ends
    shown = {p: f"intermediate pieces are missing: {' '.join(q)}" for p, q in lost.items()}
    return Grown(model, first, tuple(added), shown)


def without_piece(proto: Any, pieces: Sequence[str]) -> list[str]:
    """Characters of new pieces that have no piece themselves, in order.

    SentencePiece joins them all the same; a list of merges can only join tokens.
    """
    known = {str(one.piece) for one in proto.pieces} | set(pieces)
    return list(dict.fromkeys(c for piece in pieces for c in piece if c not in known))


def _build(
    proto: Any,
    outside: Sequence[Outside],
    pieces: Sequence[str],
    added: Sequence[str],
    scores: Scores,
) -> bytes:
    made = type(proto)()
    made.CopyFrom(proto)
    normal = [one.score for one in proto.pieces if one.type == NORMAL]
    lowest = min((score for score in normal if score > FLOOR), default=0.0)
    if lowest - len(pieces) - len(added) <= FLOOR:
        raise ModelError(
            f"the base's lowest score is {lowest}, and float32 has no room for {len(pieces)} "
            "different ones below it; give --scores zero."
        )
    for one in sorted(outside, key=lambda one: one.id):
        kind = CONTROL if one.special else USER_DEFINED
        made.pieces.add(piece=one.token, score=0.0, type=kind)
    for k, piece in enumerate(chain(pieces, added)):
        zero = scores == "zero" and k < len(pieces)
        made.pieces.add(piece=piece, score=0.0 if zero else lowest - 1 - k)
    made.trainer_spec.vocab_size = len(made.pieces)
    return cast("bytes", made.SerializeToString())


def open_model(model: bytes) -> Any:
    """SentencePiece's processor of a model."""
    from sentencepiece import SentencePieceProcessor

    made: Any = SentencePieceProcessor()
    made.LoadFromSerializedProto(model)
    return made


def unreachable(model: bytes, first: int, pieces: Sequence[str]) -> dict[str, list[str]]:
    """Pieces that their own text never becomes, neither at its start nor inside it, with what it
    becomes there; a character without a piece stands for its bytes."""
    made = open_model(model)
    texts = [piece.replace("▁", " ") for piece in pieces]
    alone = made.encode(texts)
    inside = made.encode([ANCHOR + text for text in texts])
    lost: dict[str, list[str]] = {}
    for k, piece in enumerate(pieces):
        if first + k not in alone[k] and first + k not in inside[k]:
            found = _symbols(made.id_to_piece(inside[k]))
            lost[piece] = found[found.index(ANCHOR) + 1 :] if ANCHOR in found else found
    return lost


def _symbols(tokens: Iterable[str]) -> list[str]:
    """What SentencePiece was left with before characters became bytes."""
    out: list[str] = []
    waiting = b""
    for token in (*tokens, ""):
        if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", token):
            waiting += bytes([int(byte[1], 16)])
            continue
        out += waiting.decode("utf-8", "replace")
        waiting = b""
        out += [token] if token else []
    return out


def fast(
    proto: Any,
    template: Mapping[str, Any] | None,
    frame: Mapping[str, Any],
    *,
    blank_once: bool = False,
) -> dict[str, Any]:
    """A `tokenizer.json` for a model: the given one's parts, or SentencePiece's own ways.

    `frame` has what only a tokenizer knows: its added tokens and post-processor. `blank_once` puts
    the blank before the text alone, not behind special tokens (`legacy: false` of LLaMA's class).
    """
    vocabulary = {str(one.piece): i for i, one in enumerate(proto.pieces)}
    model = {"type": "BPE", "dropout": None, "unk_token": _unknown(proto), "fuse_unk": True}
    model |= {"continuing_subword_prefix": None, "end_of_word_suffix": None}
    model |= {"byte_fallback": bool(proto.trainer_spec.byte_fallback), "ignore_merges": False}
    made = dict(template) if template else {**_OWN_WAYS, **frame}
    kept = dict(made["model"]) if template else model
    made["model"] = {**kept, "vocab": vocabulary, "merges": _merges(proto, vocabulary)}
    if not template and not proto.normalizer_spec.add_dummy_prefix:
        made["normalizer"] = _BLANKS
        made["decoder"] = {"type": "Sequence", "decoders": _DECODERS[:3]}
    elif not template and blank_once:
        made |= _BLANK_ONCE
    return made


def appended(template: Mapping[str, Any], proto: Any, first: int) -> dict[str, Any]:
    """A `tokenizer.json` with the template's own merges, and those of pieces from `first` on."""
    vocabulary = {str(one.piece): i for i, one in enumerate(proto.pieces)}
    listed = list(template["model"]["merges"])
    for one in list(proto.pieces)[first:]:
        piece = str(one.piece)
        cuts = [[piece[:k], piece[k:]] for k in range(len(piece) - 1, 0, -1)]
        listed += [[a, b] for a, b in cuts if a in vocabulary and b in vocabulary]
    return {**template, "model": {**template["model"], "vocab": vocabulary, "merges": listed}}


def _unknown(proto: Any) -> str:
    return str(proto.trainer_spec.unk_piece or "<unk>")


def _merges(proto: Any, vocabulary: Mapping[str, int]) -> list[list[str]]:
    """Every cut of a piece into two, by the piece's score.

    Among equal scores the longer left part comes first: of a run of blanks SentencePiece makes
    one piece from the left, growing it by a blank each time.
    """
    normal = [one for one in proto.pieces if one.type == NORMAL]
    usable = {str(one.piece) for one in normal}
    ranked: list[tuple[float, int, int, list[str]]] = []
    for one in normal:
        piece, score = str(one.piece), float(one.score)
        for k in range(1, len(piece)):
            left, right = piece[:k], piece[k:]
            if left in usable and right in usable:
                ranked.append((-score, -k, vocabulary[piece], [left, right]))
    return [pair for *_, pair in sorted(ranked)]


def plain(proto: Any) -> bool:
    """Whether a model does nothing to a text that a `tokenizer.json` of this kind cannot do."""
    spec, trained = proto.normalizer_spec, proto.trainer_spec
    identity = spec.name in ("identity", "") and not spec.precompiled_charsmap
    return (
        identity
        and not spec.remove_extra_whitespaces
        and spec.escape_whitespaces
        and not trained.treat_whitespace_as_suffix
        and not proto.denormalizer_spec.precompiled_charsmap
    )


def agree(
    definition: Mapping[str, Any], model: bytes, texts: Sequence[str], differ: Sequence[bool] = ()
) -> int:
    """The number of texts that a `tokenizer.json` and a model cut differently.

    Texts marked in `differ` are left out: those that the base's two forms cut differently.
    """
    from tokenizers import Tokenizer

    core = Tokenizer.from_str(json.dumps(definition, ensure_ascii=False))
    left = [text for k, text in enumerate(texts) if not (differ and differ[k])]
    one = core.encode_batch_fast(left, add_special_tokens=False)
    two = open_model(model).encode(left) if left else []
    return sum(list(a.ids) != list(b) for a, b in zip(one, two, strict=True))


_BLANKS = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_DECODERS: list[dict[str, Any]] = [
    {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
    {"type": "ByteFallback"},
    {"type": "Fuse"},
    {"type": "Strip", "content": " ", "start": 1, "stop": 0},
]
_OWN_WAYS: dict[str, Any] = {
    "version": "1.0",
    "truncation": None,
    "padding": None,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [{"type": "Prepend", "prepend": "▁"}, _BLANKS],
    },
    "pre_tokenizer": None,
    "decoder": {"type": "Sequence", "decoders": _DECODERS},
}
_BLANK_ONCE: dict[str, Any] = {
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            # Metaspace sees a text's own first blank as its doing
            {"type": "Replace", "pattern": {"Regex": r"\A[ ▁]"}, "content": "▁▁"},
            _BLANKS,
        ],
    },
    "pre_tokenizer": {
        "type": "Metaspace",
        "replacement": "▁",
        "prepend_scheme": "first",
        "split": False,
    },
}
