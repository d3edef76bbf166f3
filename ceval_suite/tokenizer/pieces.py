"""New pieces for a vocabulary: read from where they are listed, and checked before anything else.

A piece is written as SentencePiece does, with `▁` for a blank, whatever the base. Two listings are
read: JSON Lines (`{"piece": "你好"}`) and the pieces of a SentencePiece model.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ceval_suite.errors import DataError, ModelError

NORMAL, USER_DEFINED = 1, 4
"""Types of SentencePiece's pieces that stand for text."""

INVISIBLE = {"Cc": "a control", "Cf": "an invisible", "Cs": "a surrogate"}
"""Unicode categories that no piece may hold."""


@dataclass(frozen=True, slots=True)
class Bad:
    """A line that is no piece, and why."""

    line: int
    why: str


@dataclass(frozen=True)
class Listing:
    """Pieces as listed, with the line (or id) of each; `present` were skipped as known already."""

    source: str
    sha256: str
    pieces: tuple[str, ...]
    bad: tuple[Bad, ...] = ()
    present: int = 0


def of_jsonl(path: Path, known: Container[str], spell: Callable[[str], str] = str) -> Listing:
    """The pieces of a JSON Lines file; a bad line never stops the reading.

    `spell` gives a piece as the base's vocabulary writes it; `known` is that vocabulary.

    Raises:
        DataError: the file cannot be read.
    """
    raw = _read(path)
    bad: list[Bad] = []
    found: list[tuple[int, str]] = []
    for number, line in enumerate(raw.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        piece = _piece(line)
        if isinstance(piece, Bad):
            bad.append(Bad(number, piece.why))
        else:
            found.append((number, piece))
    good, wrong = check(found, known, spell)
    every = tuple(sorted([*bad, *wrong], key=lambda one: one.line))
    return Listing(str(path), hashlib.sha256(raw).hexdigest(), tuple(good), every)


def of_model(path: Path, known: Container[str], spell: Callable[[str], str] = str) -> Listing:
    """The pieces of a SentencePiece model that a base lacks, in the order of their ids.

    Those that the base has are skipped, not bad: Chinese-LLaMA's rule, by which LLaMA's 32,000
    and 20,000 Chinese pieces make 49,953 entries. A bad one is named by its id.

    Raises:
        DataError: the file cannot be read.
        ModelError: it is none of SentencePiece's.
    """
    raw = _read(path)
    listed = [
        (i, str(one.piece))
        for i, one in enumerate(read_proto(raw, path).pieces)
        if one.type in (NORMAL, USER_DEFINED)
    ]
    new = [(i, piece) for i, piece in listed if spell(piece) not in known]
    good, wrong = check(new, known, spell)
    sha256 = hashlib.sha256(raw).hexdigest()
    return Listing(str(path), sha256, tuple(good), tuple(wrong), len(listed) - len(new))


def read_proto(raw: bytes, path: Path) -> Any:
    """SentencePiece's own message of a model's bytes.

    Raises:
        ModelError: they are no such message, or one without pieces.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    proto: Any = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        proto.ParseFromString(raw)
    except DecodeError as error:
        raise ModelError(f"{path}: no SentencePiece model; give a tokenizer.model.") from error
    if not proto.pieces:
        raise ModelError(f"{path}: no SentencePiece model (no pieces); give a tokenizer.model.")
    return proto


def check(
    found: Sequence[tuple[int, str]], known: Container[str], spell: Callable[[str], str] = str
) -> tuple[list[str], list[Bad]]:
    """Good pieces in order, and what is wrong with the others; each comes with its line."""
    lines: dict[str, int] = {}
    bad: list[Bad] = []
    for line, piece in found:
        why = _wrong(piece)
        if why is None and spell(piece) in known:
            why = f"{piece!r} is in the base's vocabulary already"
        if why is None and piece in lines:
            why = f"{piece!r} is on line {lines[piece]} already"
        if why is None:
            lines[piece] = line
        else:
            bad.append(Bad(line, why))
    return list(lines), bad


def refuse(source: str, bad: Sequence[Bad], unit: str = "line") -> None:
    """Stop where pieces are bad, naming every one.

    Raises:
        DataError: there are any.
    """
    if not bad:
        return
    many = f"{len(bad)} {unit}s are no pieces" if len(bad) > 1 else f"one {unit} is no piece"
    listed = "".join(f"\n  {unit} {one.line}: {one.why}" for one in bad)
    raise DataError(f"{source}: {many}; correct the list, or give --skip-bad:{listed}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path.") from error


def _piece(line: bytes) -> str | Bad:
    try:
        content = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError:
        return Bad(0, "not UTF-8")
    except ValueError:
        return Bad(0, "not JSON")
    except RecursionError:
        return Bad(0, "JSON nested too deeply")
    if not isinstance(content, dict):
        return Bad(0, 'not an object of the form {"piece": "…"}')
    if "piece" not in content:
        return Bad(0, "the key 'piece' is missing")
    piece: Any = content["piece"]
    return piece if isinstance(piece, str) else Bad(0, "the value of 'piece' is not a text")


def _wrong(piece: str) -> str | None:
    if not piece:
        return "the piece is empty"
    for character in piece:
        kind = unicodedata.category(character)
        if kind.startswith("Z"):
            return f"{piece!r} has a space (U+{ord(character):04X}); write ▁ for a blank"
        if kind in INVISIBLE:
            return f"{piece!r} has {INVISIBLE[kind]} character (U+{ord(character):04X})"
    return "the piece is blanks alone" if not piece.strip("▁") else None
