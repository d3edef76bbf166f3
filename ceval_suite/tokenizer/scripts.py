"""A vocabulary by what its entries are written in, and how much of Chinese it holds.

The levels of GB 2312 (3,755 characters in common use, 3,008 less common ones) stand for "the
characters a Chinese text needs": they come with Python, and differ little from the levels of the
table of 2013, whose lists nobody keeps in a form that can be depended on.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from ceval_suite.backends.lexicon import ADDED, BYTE, CONTROL, UNKNOWN, UNUSED, Entry

SHOWN = 10
"""Entries that are named where some are counted."""

_HAN = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH")


@cache
def script(character: str) -> str:
    """The writing of a character: `han`, `latin`, `cyrillic`, …, `digit`, `blank` or `symbol`.

    >>> [script(c) for c in "字aж1 ，Ａ"]
    ['han', 'latin', 'cyrillic', 'digit', 'blank', 'symbol', 'fullwidth latin']
    """
    kind = unicodedata.category(character)
    if kind in ("Zs", "Zl", "Zp") or character in "\t\n\v\f\r\x85":
        return "blank"
    if kind == "Nd":
        return "digit"
    name = unicodedata.name(character, "")
    if name.startswith(_HAN):
        return "han"
    if kind[0] == "M":
        return "mark"
    if kind[0] != "L" or not name:
        return "symbol"
    words = name.replace("-", " ").split()
    if words[0] in ("FULLWIDTH", "HALFWIDTH"):
        return " ".join(words[:2]).lower()
    # a letter dressed up (ª, ℝ, 𝐀) belongs to the writing of the plain one
    plain = unicodedata.name(unicodedata.normalize("NFKC", character)[0], "").split()
    return "symbol" if kind == "Lm" and plain == words else plain[0].lower() if plain else "symbol"


def gb2312(level: int) -> list[str]:
    """The characters of level 1 (rows 16 to 55) or 2 (rows 56 to 87) of GB 2312, in its order."""
    rows = range(16, 56) if level == 1 else range(56, 88)
    codes = (bytes([0xA0 + row, 0xA0 + cell]) for row in rows for cell in range(1, 95))
    # the last row of level 1 is not full
    return [found for code in codes if (found := code.decode("gb2312", "ignore"))]


def writing(text: str) -> str:
    """What a whole entry is written in; the blank before a word does not count.

    >>> [writing(t) for t in (" the", "中国", "第1", "12", "  ", "α", "don't")][:3]
    ['ASCII', 'Chinese, several characters', 'mixed with Chinese']
    """
    found = {script(c) for c in text}
    if found <= {"blank"}:
        return "blanks"
    bare = text.strip()
    found = {script(c) for c in bare} - {"blank", "mark"}
    if found == {"digit"}:
        return "digits"
    if bare.isascii():
        return "ASCII"
    if found == {"han"}:
        return "Chinese, one character" if len(bare) == 1 else "Chinese, several characters"
    if "han" in found:
        return "mixed with Chinese"
    letters = found - {"digit", "symbol"}
    if len(letters) > 1:
        return "other, mixed"
    return letters.pop() if letters else "symbols and punctuation"


_KINDS = {
    BYTE: "bytes",
    CONTROL: "special",
    UNKNOWN: "special",
    UNUSED: "unused",
}


def by_writing(entries: Sequence[Entry]) -> dict[str, int]:
    """Entries of each writing, most first; every entry is counted once."""
    counts: Counter[str] = Counter()
    for entry in entries:
        text = entry.text
        if entry.kind in _KINDS:
            counts[_KINDS[entry.kind]] += 1
        elif text is None:
            counts["parts of characters"] += 1
        else:
            counts[writing(text)] += 1
    return dict(counts.most_common())


def chinese(entries: Sequence[Entry], lost: Sequence[int]) -> dict[str, Any]:
    """How much Chinese is in a vocabulary; entries that no text becomes (`lost`) do not count."""
    gone = set(lost)
    texts = {
        entry.text: entry.id
        for entry in entries
        if entry.text and entry.kind not in _KINDS and entry.id not in gone
    }
    levels: dict[str, Any] = {}
    for level in (1, 2):
        wanted = gb2312(level)
        missing = [c for c in wanted if c not in texts]
        levels[f"level {level}"] = {
            "characters": len(wanted),
            "single": len(wanted) - len(missing),
            "first_missing": "".join(missing[:SHOWN]),
        }
    words = [text for text in texts if writing(text) == "Chinese, several characters"]
    longest = sorted(words, key=len, reverse=True)
    return {
        "gb2312": levels,
        "words": len(words),
        "words_by_length": dict(sorted(Counter(len(word.strip()) for word in words).items())),
        "longest_words": longest[:SHOWN],
    }


def digits(
    encode: Callable[[Sequence[str]], list[list[int]]], entries: Mapping[int, Entry]
) -> dict[str, Any]:
    """How numbers are cut: each digit, groups of up to three from the left, or as merges fell."""
    numbers = [*(str(n) for n in range(1000)), "2024", "12345", "1234567", "20230101"]
    found: dict[str, list[str]] = {}
    for number, ids in zip(numbers, encode([f"\n{n}" for n in numbers]), strict=True):
        parts = [(entries[i].text or "").strip() for i in ids if i in entries]
        found[number] = [part for part in parts if part]
    longest = max((len(part) for parts in found.values() for part in parts), default=0)
    short = all(len(parts) == 1 for number, parts in found.items() if len(number) <= 3)
    groups = all(
        parts == [number[k : k + 3] for k in range(0, len(number), 3)]
        for number, parts in found.items()
    )
    how = "as merged"
    if longest == 1:
        how = "digit by digit"
    elif short and groups:
        how = "groups of three from the left"
    whole = sum(len(parts) == 1 for number, parts in found.items() if len(number) <= 3)
    return {
        "split": how,
        "longest": longest,
        "below_1000_whole": whole,
        "examples": {number: found[number] for number in numbers[1000:]},
    }


def kinds(entries: Sequence[Entry]) -> dict[str, int]:
    """Entries of each kind, as the tokenizer itself declares them."""
    return dict(Counter(e.kind for e in entries).most_common())


def added(entries: Sequence[Entry]) -> list[str]:
    """Names of entries that were added from outside without being special."""
    return [entry.token for entry in entries if entry.kind == ADDED]
