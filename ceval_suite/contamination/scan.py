"""Folded texts → candidates: where enough of an item's seed grams stand close together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ceval_suite.contamination.index import Index
from ceval_suite.contamination.normal import Array, grams
from ceval_suite.contamination.targets import SEED, STEP

ENOUGH = 0.3
"""Share of a target's weight that must stand close together to be looked at more closely."""

_STRETCH, _SLACK = 1.25, 24
"""How much longer than the target itself a passage may be."""

_ALIGNED = 0.15
"""How far, in lengths of the target, a seed may be from where the others say the target lies."""


@dataclass(frozen=True)
class Candidate:
    """Where in which document a target may stand: from `low` to before `high`, in folded text."""

    document: int
    target: int
    low: int
    high: int


class Scanner:
    """Looks through batches of folded documents."""

    def __init__(self, lengths: Array, indexes: Sequence[Index], enough: float = ENOUGH) -> None:
        """`lengths` are the targets'; `enough` the share of one's seeds that makes a candidate."""
        self._indexes = indexes
        self._lengths = lengths
        self._limits = (lengths * _STRETCH).astype(np.int64) + _SLACK
        self._needs = [
            np.maximum(
                1.0,
                enough
                / STEP[i.size]
                * np.bincount(i.owners, weights=i.weights, minlength=len(lengths)),
            )
            for i in indexes
        ]

    def candidates(self, codes: Array, starts: Array) -> list[Candidate]:
        """Every candidate in documents that begin at `starts` of `codes`, in order."""
        found: list[Candidate] = []
        for index, needs in zip(self._indexes, self._needs, strict=True):
            if index.size == SEED["zh"] and codes.dtype == np.uint8:  # ASCII alone
                continue
            step = STEP[index.size]
            at, entry = index.hits(grams(codes, index.size, step))
            if len(at):
                found += self._grouped(index, needs, starts, at * step, entry)
        return sorted(found, key=lambda c: (c.document, c.target, c.low))

    def _grouped(
        self, index: Index, needs: Array, starts: Array, at: Array, entry: Array
    ) -> list[Candidate]:
        low = index.starts[entry]
        many = index.starts[entry + 1] - low
        posting = np.repeat(low - (np.cumsum(many) - many), many) + np.arange(many.sum())
        at = np.repeat(at, many)
        owner, weight = index.owners[posting], index.weights[posting]
        document = np.searchsorted(starts, at, side="right") - 1
        pair = document * len(self._lengths) + owner
        # first what can be told without order: most pairs share a seed or two by chance
        _, inverse = np.unique(pair, return_inverse=True)
        heavy = np.bincount(inverse, weights=weight)[inverse] >= needs[owner]
        if not heavy.any():
            return []
        at, owner, weight, posting = at[heavy], owner[heavy], weight[heavy], posting[heavy]
        pair, document = pair[heavy], document[heavy]
        order = np.argsort(pair, kind="stable")  # positions stay in order within a pair
        at, owner, weight, posting = at[order], owner[order], weight[order], posting[order]
        pair, document = pair[order], document[order]
        place = index.places[posting]
        group = np.cumsum(np.append(0, np.diff(pair) != 0))
        line = group * (int(at.max()) + int(self._limits.max()) + 1) + at
        end = np.searchsorted(line, line + self._limits[owner], side="right")
        sums = np.append(0.0, np.cumsum(weight))
        score = sums[end] - sums[:-1]
        good = np.flatnonzero(score >= needs[owner] - 1e-6)
        best: dict[int, int] = {}
        for one in good.tolist():
            known = best.setdefault(int(group[one]), one)
            if score[one] > score[known] + 1e-6:
                best[int(group[one])] = one
        return [
            self._candidate(
                int(document[one]),
                int(owner[one]),
                at[one : end[one]] - starts[document[one]],
                place[one : end[one]],
            )
            for one in best.values()
        ]

    def _candidate(self, document: int, target: int, at: Array, place: Array) -> Candidate:
        length = int(self._lengths[target])
        pairs = list(zip(at.tolist(), place.tolist(), strict=True))
        middle = sorted(a - p for a, p in pairs)[len(pairs) // 2]
        off = _ALIGNED * length + _SLACK / 2
        near = [(a, p) for a, p in pairs if abs(a - p - middle) <= off]
        (first, before), (last, reached) = min(near), max(near)
        return Candidate(document, target, max(0, first - before), last + length - reached)
