"""Which parts of an item and of a passage are the same, as spans of the texts as they stand."""

from __future__ import annotations

from rapidfuzz.distance import Indel

from ceval_suite.contamination.normal import folded

SHORTEST = 2
"""Letters from which on equal parts are marked: single ones are equal by chance."""

Spans = list[tuple[int, int]]


def marked(item: str, passage: str, start: int, end: int) -> tuple[Spans, Spans]:
    """The spans of `item`, and of `passage` between `start` and `end`, that are equal."""
    ours, theirs = folded(item), folded(passage[start:end])
    left: Spans = []
    right: Spans = []
    for one in Indel.opcodes(ours.text, theirs.text):
        if one.tag == "equal" and one.src_end - one.src_start >= SHORTEST:
            left.append((int(ours.at[one.src_start]), int(ours.at[one.src_end - 1]) + 1))
            low, high = int(theirs.at[one.dest_start]), int(theirs.at[one.dest_end - 1]) + 1
            right.append((start + low, start + high))
    return left, right
