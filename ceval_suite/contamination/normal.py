"""What is left of a text when blanks, punctuation, case and width do not count.

Each character is folded by itself, whatever stands beside it, so that a table does it for millions
at once: compatibility decomposition (NFKD: full-width to half-width, ligatures, circled digits),
case folding, and only letters and numbers kept; accents go, blanks and punctuation go.
"""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

RULE = (
    "each character by itself: NFKD, case folding, NFKD, letters and numbers kept (no blanks, "
    "punctuation, symbols, marks), NFC"
)
"""As recorded in a report."""

BREAK = "\U0010ffff"
"""Stands between two documents of a batch: kept, and no letter, so no gram reaches over it."""

_ASCII_BREAK = "\x1e"
_ASCII_FOLD = bytes.maketrans(
    b"ABCDEFGHIJKLMNOPQRSTUVWXYZ" + _ASCII_BREAK.encode(), b"abcdefghijklmnopqrstuvwxyz\x01"
)
_ASCII_DROPPED = bytes(c for c in range(128) if not chr(c).isalnum() and chr(c) != _ASCII_BREAK)

_BROKEN, _SEVERAL = 1, 2
_SAME = ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0x20000, 0x2A6E0))
"""Letters that fold to themselves: most of Unicode, left out of the search for those that do not"""
_ASSIGNED = (range(0x20000), range(0x2A6E0, 0x32400))
_KEPT = "LN"


def fold(char: str) -> str:
    """What one character becomes: nothing, itself, or one or more other characters."""
    found = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
    kept = "".join(c for c in found if unicodedata.category(c)[0] in _KEPT)
    return unicodedata.normalize("NFC", kept)


@cache
def _table() -> tuple[Array, dict[int, str]]:
    """The code of each character's fold; 0 for nothing, and apart those that become several."""
    codes = np.zeros(sys.maxunicode + 1, np.uint32)
    several: dict[int, str] = {}
    for low, high in _SAME:
        codes[low:high] = np.arange(low, high)
    for code in (c for span in _ASSIGNED for c in span):
        if codes[code] or 0xD800 <= code < 0xE000:
            continue
        char = chr(code)
        if not unicodedata.decomposition(char) and char.casefold() == char:  # nearly all of them
            codes[code] = code if unicodedata.category(char)[0] in _KEPT else 0
            continue
        found = fold(char)
        if len(found) == 1:
            codes[code] = ord(found)
        elif found:
            several[code] = found
            codes[code] = _SEVERAL
    codes[ord(BREAK)] = _BROKEN
    return codes, several


@dataclass(frozen=True)
class Folded:
    """The characters that are left, as code points, and where in the text each came from."""

    codes: Array
    at: Array

    @property
    def text(self) -> str:
        """The same as a string."""
        return as_text(self.codes)


def as_text(codes: Array) -> str:
    """Code points as a string."""
    return codes.astype("<u4").tobytes().decode("utf-32-le", "surrogatepass")


def codes(text: str) -> Array:
    """The code points of what is left of a text."""
    found, raw = _looked_up(text)
    if (found == _SEVERAL).any():
        return _spread(found, raw).codes
    return found[found > _BROKEN]


def batch(texts: Sequence[str]) -> tuple[Array, Array]:
    """Several texts folded at once, a break behind each; and where each begins.

    Texts of ASCII alone take a much shorter way to the same codes.
    """
    plain = all(map(str.isascii, texts))
    mark = _ASCII_BREAK if plain else BREAK
    whole = mark.join(texts) + mark
    if whole.count(mark) != len(texts):
        whole = mark.join(text.replace(mark, "") for text in texts) + mark
    if plain:
        found = whole.encode().translate(_ASCII_FOLD, _ASCII_DROPPED)
        out = np.frombuffer(found, np.uint8)
    else:
        looked_up, raw = _looked_up(whole)
        several = (looked_up == _SEVERAL).any()
        out = _spread(looked_up, raw, 0).codes if several else looked_up[looked_up != 0]
    ends = np.flatnonzero(out == _BROKEN)
    return out, np.concatenate([[0], ends[:-1] + 1])


def apart(texts: Sequence[str]) -> list[str]:
    """What is left of each of several texts."""
    return as_text(batch(texts)[0]).split(chr(_BROKEN))[:-1] if texts else []


def word_starts(pairs: Sequence[tuple[str, str]]) -> tuple[Array, Array, Array, Array]:
    """Texts in two parts, like `batch`; where the second part begins in what is left of each, and
    where something was left out before a character that is kept.
    """
    parts = [part.replace(BREAK, "") for pair in pairs for part in pair]
    whole = "".join(f"{first}\n{second}{BREAK}" for first, second in _two_by_two(parts))
    lengths = np.array([*map(len, parts)], np.int64).reshape(-1, 2)
    looked_up, raw = _looked_up(whole)
    found = _spread(looked_up, raw, 0)
    ends = np.flatnonzero(found.codes == _BROKEN)
    starts = np.concatenate([[0], ends[:-1] + 1])
    begins = np.append(True, np.diff(found.at) > 1)
    begins[starts] = True
    sizes = lengths.sum(axis=1) + 2
    firsts = np.searchsorted(found.at, np.cumsum(sizes) - sizes + lengths[:, 0]) - starts
    return found.codes, starts, firsts, begins


def _two_by_two(parts: Sequence[str]) -> Iterator[tuple[str, str]]:
    return zip(parts[::2], parts[1::2], strict=True)


def folded(text: str) -> Folded:
    """What is left of a text, with its places."""
    found, raw = _looked_up(text)
    return _spread(found, raw)


def squeezed(text: str) -> str:
    """What is left of a text, as a string."""
    return as_text(codes(text))


def _looked_up(text: str) -> tuple[Array, Array]:
    raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
    return _table()[0].take(raw), raw


def _spread(found: Array, raw: Array, dropped: int = _BROKEN) -> Folded:
    several = _table()[1]
    lengths = (found > dropped).astype(np.int64)
    many = np.flatnonzero(found == _SEVERAL)
    lengths[many] = [len(several[int(code)]) for code in raw[many]]
    at = np.repeat(np.arange(len(raw)), lengths)
    out = np.repeat(found, lengths)
    starts = np.cumsum(lengths) - lengths
    for place in many.tolist():
        text = several[int(raw[place])]
        out[starts[place] : starts[place] + len(text)] = [ord(c) for c in text]
    return Folded(out, at)


_MULTIPLIER = 0x9E3779B97F4A7C15
_SPREADER = 0xD6E8FEB86659FD93
_MASK = 2**64 - 1


def power(n: int) -> np.uint64:
    """What the hash of the first part of a gram is multiplied with where n characters follow."""
    return np.uint64(pow(_MULTIPLIER, n, 2**64))


def singles(codes: Array) -> Array:
    """The hash of each character."""
    found = codes.astype(np.uint64)
    found *= np.uint64(_SPREADER)
    found ^= found >> np.uint64(32)
    return found


def longer(first: Array, n: int, second: Array, m: int) -> Array:
    """The hashes of grams of n + m characters from those of n and of the m that follow."""
    size = max(0, len(second) - n)
    found = first[:size] * power(m)
    found += second[n : n + size]
    return found


def grams(codes: Array, n: int, step: int = 1) -> Array:
    """A polynomial hash modulo 2^64 of each n characters in a row, the high bits mixed in.

    Of all places, or of every second, third and so on.
    """
    doubled, size, found, length = singles(codes), 1, None, 0
    while size <= n:
        if n & size:
            # the shorter part first: both ends then come from arrays already there
            found = doubled if found is None else longer(found, length, doubled, size)
            length += size
        if 2 * size <= n:
            doubled = longer(doubled, size, doubled, size)
        size *= 2
    assert found is not None
    return mixed(found[::step])


def mixed(hashes: Array) -> Array:
    """Hashes whose high bits depend on all others."""
    found = hashes ^ (hashes >> np.uint64(29))
    found *= np.uint64(_SPREADER)
    return found


def grams_of(texts: Sequence[Array], n: int) -> tuple[Array, Array, Array]:
    """The grams of several texts in a row, which text each is of, and its place in there."""
    if not texts:
        return np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.int64)
    lengths = np.array([*map(len, texts)], np.int64)
    ends = np.cumsum(lengths)
    hashes = grams(np.concatenate(texts), n)
    owners = np.repeat(np.arange(len(texts)), lengths)[: len(hashes)]
    at = np.arange(len(hashes))
    inside = at + n <= ends[owners]
    owners = owners[inside]
    return hashes[inside], owners, at[inside] - (ends - lengths)[owners]
