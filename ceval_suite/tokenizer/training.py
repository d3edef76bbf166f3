"""Pieces learnt from text: by SentencePiece's trainer, or as further merges of a byte-level BPE."""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ceval_suite.backends.lexicon import bytes_of_characters
from ceval_suite.errors import DataError
from ceval_suite.tokenizer.pieces import NORMAL, Listing, check, read_proto

PLANE = 0x10000
"""Characters from here on stand for the base's tokens while merges of them are learnt."""

LONGEST_LINE = 2**20
"""Bytes; SentencePiece leaves out longer lines without a word."""

TEXT = {".txt", ".csv", ".tsv", ".json", ".jsonl", ".md", ".zh", ".en"}
"""Endings of text files, which .gz may follow."""

HAN = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))
"""Code points of Chinese characters, compatibility forms and extensions included."""


def files(paths: Sequence[Path]) -> list[Path]:
    """Text files as given; of a directory all in it, by name.

    Raises:
        DataError: a path does not exist, or a directory holds no text files.
    """
    out: list[Path] = []
    for path in paths:
        if not path.exists():
            raise DataError(f"{path}: no such file or directory; check the path of the text.")
        inside = (p for p in path.rglob("*") if p.is_file() and TEXT & set(p.suffixes))
        found = sorted(inside) if path.is_dir() else [path]
        if not found:
            raise DataError(f"{path}: holds no text files ({', '.join(sorted(TEXT))}).")
        out += found
    return out


def lines(paths: Sequence[Path]) -> Iterator[str]:
    """The lines of text files, gzipped where the name ends in .gz; blank ones are left out.

    Raises:
        DataError: a file cannot be read or is not UTF-8; file and line are named.
    """
    for path in paths:
        number = 0
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                for number, raw in enumerate(stream, start=1):
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip("\r\n")
                    if line.strip():
                        yield line
        except UnicodeDecodeError as error:
            raise DataError(f"{path}, line {number}: not UTF-8; convert the file.") from error
        except (OSError, EOFError, zlib.error) as error:
            why = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read after line {number} ({why}).") from error


def train(
    corpus: Sequence[Path],
    size: int,
    vocabulary: dict[str, int],
    *,
    core: Any = None,
    coverage: float = 0.9995,
    only_han: bool = False,
) -> Listing:
    """`size` pieces that a base lacks, the first learnt first; the same text gives the same ones.

    With `core`, a byte-level tokenizer, merges of its own tokens are learnt; what they make is
    taken where it is whole characters. Else SentencePiece's BPE trainer learns from characters,
    of which `coverage` is the share of the text that must have a piece.

    Raises:
        DataError: the corpus cannot be read or does not give as many.
    """
    text = list(lines(files(corpus)))
    if not text:
        raise DataError(f"{', '.join(map(str, corpus))}: no text to learn pieces from.")
    words = _words(core, text) if core is not None else []
    spell = speller(core is not None)
    wanted, before = size + size // 4, -1
    while True:
        if core is not None:
            found = _merged(core, words, wanted)
        else:
            found = _pieces(text, wanted, coverage)
        new = [piece for piece in found if spell(piece) not in vocabulary]
        good, _ = check(list(enumerate(new)), vocabulary, spell)
        good = [piece for piece in good if not only_han or any(map(_is_han, piece))][:size]
        if len(good) == size:
            break
        if len(found) <= before:
            raise DataError(
                f"the corpus gives {len(good)} pieces that the base lacks, not {size}; lower "
                "--size or give more text."
            )
        before, wanted = len(found), 2 * wanted
    sha256 = hashlib.sha256("\n".join(text).encode()).hexdigest()
    return Listing(", ".join(map(str, corpus)), sha256, tuple(good))


def speller(byte_level: bool) -> Callable[[str], str]:
    """How a vocabulary writes a piece: its bytes as printable characters, or as it is."""
    if not byte_level:
        return str
    written = {byte: character for character, byte in bytes_of_characters().items()}
    return lambda piece: "".join(written[b] for b in piece.replace("▁", " ").encode())


def _is_han(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in HAN)


def _pieces(text: Sequence[str], wanted: int, coverage: float) -> list[str]:
    """What SentencePiece's trainer learns, in its order: joined pieces, then characters."""
    import sentencepiece

    made = io.BytesIO()
    trainer: Any = sentencepiece.SentencePieceTrainer
    alphabet = len({character for line in text for character in line})
    try:
        trainer.train(
            sentence_iterator=iter(text),
            model_writer=made,
            model_type="bpe",
            vocab_size=wanted + alphabet + 4,
            character_coverage=coverage,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            split_digits=True,
            shuffle_input_sentence=False,
            max_sentence_length=LONGEST_LINE,
            num_threads=1,
            minloglevel=2,
        )
    except RuntimeError as error:
        first = " ".join(str(error).split())[:200]
        raise DataError(f"SentencePiece cannot learn from this corpus ({first}).") from error
    proto = read_proto(made.getvalue(), Path("trained"))
    return _interleaved([str(one.piece) for one in proto.pieces if one.type == NORMAL])


def _interleaved(pieces: Sequence[str]) -> list[str]:
    """Characters that a longer piece needs before it, all others after the longer pieces.

    The trainer lists all joined pieces first; a cut there would leave them without characters.
    """
    alone = {piece for piece in pieces if len(piece) == 1}
    out: dict[str, None] = {}
    for piece in pieces:
        out |= dict.fromkeys(character for character in piece if character in alone)
        out[piece] = None
    return list(out)


def _words(core: Any, text: Sequence[str]) -> list[str]:
    """Each part that is merged by itself, as one character a token."""
    out: list[str] = []
    known: dict[str, str] = {}
    for line in text:
        normal = core.normalizer.normalize_str(line) if core.normalizer else line
        row: list[str] = []
        for part, _ in core.pre_tokenizer.pre_tokenize_str(normal):
            if part not in known:
                known[part] = "".join(chr(PLANE + one.id) for one in core.model.tokenize(part))
            row.append(known[part])
        out.append(" ".join(row))
    return out


def _merged(core: Any, words: Sequence[str], wanted: int) -> list[str]:
    """Pieces that further merges make, in the order in which they are learnt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = {character for row in words for character in row} - {" "}
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=len(alphabet) + 3 * wanted, min_frequency=2, show_progress=False
    )
    learner.train_from_iterator(words, trainer)
    table = bytes_of_characters()
    out: list[str] = []
    for token, _ in sorted(learner.get_vocab().items(), key=lambda pair: pair[1]):
        spelled = "".join(core.id_to_token(ord(character) - PLANE) or "" for character in token)
        if len(token) < 2 or not all(character in table for character in spelled):
            continue
        try:
            piece = bytes(table[character] for character in spelled).decode("utf-8")
        except UnicodeDecodeError:
            continue  # a part of a character
        if "▁" not in piece:
            out.append(piece.replace(" ", "▁"))
    return out
