"""Is the answer there too? The right option's text near the question, or its letter marked."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from ceval_suite.contamination.normal import apart, squeezed
from ceval_suite.contamination.targets import HAN, Target

NEAR = 600
"""Characters behind the question that are searched for the answer, beside the options' own."""

_LONG = {True: 2, False: 5}
"""Letters from which on an option is found inside other text (Chinese or not); a shorter one must
stand by itself."""

_MARK = (
    r"(?:答案|正确选项|故选|应选|[Aa]nswer|ANSWER)\W{{0,3}}(?:(?:is|was|应?为|应?是|option|key)\W{{0,3}}"
    r"){{0,2}}{label}(?![A-Za-z])"
)
_PIECE = re.compile(r"\w+")


@dataclass(frozen=True)
class Answer:
    """How the answer was found: `text`, `letter`, both or neither; and options that are there."""

    text: bool = False
    letter: bool = False
    options: int = 0

    @property
    def found(self) -> bool:
        """Whether the answer stands there in either form."""
        return self.text or self.letter


def answer(target: Target, document: str, end: int) -> Answer:
    """Look for the answer in a document (as it stands) behind the question's end.

    Where the question holds its own options, they are part of it, and only the letter can tell.
    """
    room = NEAR + sum(map(len, target.choices))
    behind = document[end : end + room]
    there = _standing(target.choices, behind)
    right = [
        found for label, found in zip(target.labels, there, strict=False) if label in target.answer
    ]
    text = bool(right) and all(right)
    return Answer(text, _marked(target.answer, behind), sum(there))


def _marked(labels: Sequence[str], text: str) -> bool:
    letters = r"\W{0,3}".join(map(re.escape, labels))
    return bool(labels) and bool(re.search(_MARK.format(label=letters), text))


def _standing(choices: Sequence[str], text: str) -> list[bool]:
    """Which options stand in a text, blanks, punctuation, case and width left out."""
    squeezed_text = squeezed(text)
    words: set[str] = set()
    out: list[bool] = []
    for choice, wanted in zip(choices, apart(choices), strict=True):
        if not wanted:
            out.append(bool(choice.strip()) and choice.strip() in text)
        elif len(wanted) >= _LONG[bool(HAN.search(wanted))]:
            out.append(wanted in squeezed_text)
        else:
            words = words or _words(text)
            out.append(wanted in words)
    return out


def _words(text: str) -> set[str]:
    """What stands by itself in a text, and each two of these that follow each other."""
    parts = apart(_PIECE.findall(text))
    return {"", *parts, *map("".join, pairwise(parts))}
