"""Exercises of one mould with other figures are other exercises: do the numbers agree?

Numbers are digits, Chinese numerals and English number words, in folded text, in which words run
together; so a number counts only against another that stands in its place.
"""

from __future__ import annotations

import re

from rapidfuzz.distance import Indel

_WORDS = (
    r"seventeen|eighteen|fourteen|nineteen|thirteen|thousand|fifteen|hundred|million|"
    r"quarter|seventh|seventy|sixteen|double|eighth|eighty|eleven|fourth|ninety|"
    r"second|single|thirty|triple|twelve|twenty|eight|fifth|fifty|first|forty|"
    r"ninth|seven|sixth|sixty|tenth|third|three|five|four|half|nine|zero|one|six|"
    r"ten|two"
)
"""Longer ones first."""

_NUMBER = re.compile(rf"\d+|[零〇一二两三四五六七八九十百千万亿]+|{_WORDS}")
_LONGEST = 20
"""Letters that a number has at most, as far as one is looked for around a place."""


def same(text: str, passage: str) -> bool:
    """Whether no number of a text has another number in its place in a passage."""
    blocks = [(0, 0, 0)]
    for one in Indel.opcodes(text, passage):
        if one.tag == "equal":
            blocks.append((one.src_start, one.dest_start, one.src_end - one.src_start))
    blocks.append((len(text), len(passage), 0))
    theirs = [(m.start(), m.end(), m.group()) for m in _NUMBER.finditer(passage)]
    for number in _NUMBER.finditer(text):
        start, end = number.span()
        # between the last letter before it and the first one behind it that both have
        low = max(d + min(n, start - s) for s, d, n in blocks if s < start or not s)
        high = min(d + max(0, end - s) for s, d, n in blocks if s + n > end or s == len(text))
        there = [text for a, b, text in theirs if a < high and b > low]
        if there and number.group() not in there:
            return False
    return True


def same_at_ends(text: str, begin: int, end: int, passage: str, at: int) -> bool:
    """Whether a piece that both have, `text[begin:end]`, does not break off at unlike numbers."""
    reached = at + end - begin
    one, other = _from(text, end), _from(passage, reached)
    if one and other and one != other and not one.startswith(other):  # cut off amid a number
        return False
    one, other = _up_to(text, begin), _up_to(passage, at)
    return not one or not other or one == other


def _from(text: str, at: int) -> str:
    """The number that stands at a place or goes on there."""
    low = max(0, at - _LONGEST)
    found = [m for m in _NUMBER.finditer(text, low, at + _LONGEST) if m.start() <= at <= m.end()]
    return found[-1].group() if found else ""


def _up_to(text: str, at: int) -> str:
    """The number that ends at a place or goes on there."""
    low = max(0, at - _LONGEST)
    found = [m for m in _NUMBER.finditer(text, low, at + _LONGEST) if m.start() <= at <= m.end()]
    return found[0].group() if found else ""
