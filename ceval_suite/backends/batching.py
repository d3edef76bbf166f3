"""Which tokens to compute once, and which to pack together: pure planning, no torch.

A *row* is the tokens of context + continuation without the last one; a *read* asks for the score
of one next token at one position of it. Rows are sorted by token ids, so that rows with a common
head stand together; every head worth sharing becomes a *stem*, computed once, whose keys and
values serve all tails below it. Stems nest: header and shots, then a passage, then the question.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Tokens = npt.NDArray[np.int32]

MIN_STEM = 16
"""A shared head shorter than this costs more in extra passes than it saves in tokens."""


class Read(NamedTuple):
    """Score `token` as the next one after `position`; `slot` names who asked."""

    position: int
    token: int
    slot: tuple[int, int]


@dataclass(slots=True)
class Row:
    """Tokens to run and what to read off them."""

    tokens: Tokens
    reads: list[Read]


@dataclass(slots=True)
class Segment:
    """A run of tokens from position `start` on, after the stems above it."""

    start: int
    tokens: Tokens
    reads: list[Read]


@dataclass(slots=True)
class Stem:
    """A shared head: its own segment, the tails that end below it and the stems that extend it."""

    segment: Segment
    tails: list[Segment] = field(default_factory=list[Segment])
    stems: list[Stem] = field(default_factory=list["Stem"])

    def walk(self) -> Iterator[Stem]:
        """This stem and all below it."""
        yield self
        for stem in self.stems:
            yield from stem.walk()


def common(a: Tokens, b: Tokens) -> int:
    """Length of the common head of two rows."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def merge_rows(rows: Sequence[Row]) -> list[Row]:
    """Rows in token order, with a row that is another's head merged into it."""
    # big-endian bytes of non-negative ids order exactly as the ids do
    ordered = sorted(rows, key=lambda row: row.tokens.astype(">u4").tobytes())
    out: list[Row] = []
    for row in ordered:
        if out and common(out[-1].tokens, row.tokens) == len(out[-1].tokens):
            out[-1] = Row(row.tokens, [*out[-1].reads, *row.reads])
        else:
            out.append(Row(row.tokens, list(row.reads)))
    return out


def plan(rows: Sequence[Row], min_stem: int = MIN_STEM) -> Stem:
    """The tree of stems and tails over all rows.

    The root has an empty segment. Every read of every row stands in exactly one segment; the
    sum of all segments' tokens is what will be computed.
    """
    merged = merge_rows(rows)
    heads = [common(a.tokens, b.tokens) for a, b in pairwise(merged)]
    root = Stem(Segment(0, np.empty(0, np.int32), []))
    # explicit stack: (rows first..last, tokens already above, stem to hang them on)
    todo = [(0, len(merged), 0, root)]
    while todo:
        first, last, depth, stem = todo.pop()
        start = first
        while start < last:
            end = start + 1
            while end < last and heads[end - 1] - depth >= min_stem:
                end += 1
            if end - start == 1:
                row = merged[start]
                stem.tails.append(Segment(depth, row.tokens[depth:], row.reads))
            else:
                shared = min(heads[start : end - 1])
                todo.append((start, end, shared, _extend(stem, merged[start:end], depth, shared)))
            start = end
    return root


def _extend(stem: Stem, rows: Sequence[Row], depth: int, shared: int) -> Stem:
    own: list[Read] = []
    for row in rows:
        own += [read for read in row.reads if read.position < shared]
        row.reads = [read for read in row.reads if read.position >= shared]
    child = Stem(Segment(depth, rows[0].tokens[depth:shared], own))
    stem.stems.append(child)
    return child


def pack(tails: Sequence[Segment], budget: int) -> list[list[Segment]]:
    """Tails in packs of at most `budget` tokens (one longer tail makes a pack of its own).

    Like lengths go together, longest first, so that running out of memory happens at once.
    """
    packs: list[list[Segment]] = []
    size = budget + 1
    for tail in sorted(tails, key=lambda tail: -len(tail.tokens)):
        if not len(tail.tokens):
            raise ValueError("a tail without tokens has nothing to compute")
        if size + len(tail.tokens) > budget:
            packs.append([])
            size = 0
        packs[-1].append(tail)
        size += len(tail.tokens)
    return packs


def planned_tokens(root: Stem) -> int:
    """Tokens that the plan computes."""
    return sum(
        len(stem.segment.tokens) + sum(len(tail.tokens) for tail in stem.tails)
        for stem in root.walk()
    )


def probe(rows: Sequence[Row]) -> list[Row]:
    """Rows to try a model on: the longest and the shortest, each with made-up siblings.

    Siblings leave their row early and half-way, so that stems in stems, tails below them and packs
    are tried whatever was asked, and at full length, where attention windows and position scalings
    set in. They are read right after the border too, where a forgotten stem shows most.
    """
    chosen = {id(row): row for row in (f(rows, key=lambda r: len(r.tokens)) for f in (max, min))}
    out: list[Row] = []
    for row in chosen.values():
        out.append(Row(row.tokens, list(row.reads)))
        last = len(row.tokens) - 1
        early = min(MIN_STEM, last)
        for at in sorted({early, max(early, len(row.tokens) // 2)}):
            tokens = row.tokens.copy()
            tokens[at] = int(tokens[at] == 0)
            spots = sorted({at, (at + last) // 2, last})
            slot = (-len(out), 0)
            out.append(Row(tokens, [Read(p, int(row.tokens[p]), slot) for p in spots]))
    return out
