"""Records → the probabilities of their items' letters, as arrays.

Every item whose letters were scored one by one has a distribution: the softmax over its letters of
what decided (raw logits where there are some, else log-probabilities).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ceval_suite import methods, stats
from ceval_suite.schema import Estimate, Record

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Distributions:
    """One row a record, in the order of ids; one column a letter.

    `logs` are log-probabilities among an item's letters, -inf for a letter that it does not have.
    `gold` marks the right letters, in no column where the record has no gold label. `left_out`
    counts the records that have no distribution, by the reason.
    """

    records: Sequence[Record]
    letters: tuple[str, ...]
    logs: Floats
    gold: Flags
    left_out: Mapping[str, int]

    @cached_property
    def clusters(self) -> list[str]:
        """The name of what a record belongs to, for each."""
        return [methods.cluster(record) for record in self.records]

    @property
    def top(self) -> NDArray[np.int64]:
        """The column of the likeliest letter, the first where several are."""
        return self.logs.argmax(1)

    @property
    def right(self) -> Flags:
        """Whether the likeliest letter is a right one."""
        return self.gold[np.arange(len(self.records)), self.top]

    @property
    def there(self) -> Flags:
        """Which letters an item has."""
        return np.isfinite(self.logs)

    def kinds(self) -> NDArray[np.int64]:
        """A number for each row that is equal where items have the same letters."""
        index: Any = np.unique(self.there, axis=0, return_inverse=True)[1]
        return index.reshape(-1)

    def chosen(self, rows: Flags) -> Distributions:
        """Some of the rows."""
        kept = [record for record, keep in zip(self.records, rows.tolist(), strict=True) if keep]
        return Distributions(kept, self.letters, self.logs[rows], self.gold[rows], self.left_out)

    def columns(self, letters: Sequence[str]) -> Distributions:
        """Some of the letters, all that any row has."""
        index = [self.letters.index(letter) for letter in letters]
        return replace(
            self, letters=tuple(letters), logs=self.logs[:, index], gold=self.gold[:, index]
        )

    def labelled(self) -> Distributions:
        """The rows that have a gold label among their letters."""
        return self.chosen(self.gold.sum(1) > 0)

    def mean(self, values: Floats | Flags) -> Estimate:
        """The mean of one value a row, with an interval over clusters."""
        return stats.mean(values.astype(np.float64).tolist(), self.clusters)

    def share(self, values: Floats | Flags) -> Estimate:
        """The mean of one value in [0, 1] a row, with an interval over clusters."""
        return stats.share(values.astype(np.float64).tolist(), self.clusters)


def of(records: Sequence[Record]) -> Distributions:
    """The distributions of all records that have one.

    Left out, and counted: letters that a server did not return (`bounded`), strings of letters
    that follow one another (`strings`), and letters whose scores are not finite.
    """
    kept: list[Record] = []
    left = Counter[str]()
    for record in sorted(records, key=lambda record: record.id):
        reason = _unfit(record)
        if reason:
            left[reason] += 1
        elif record.logprobs:
            kept.append(record)
    letters = tuple(sorted({letter for record in kept for letter in record.logprobs}))
    rows = [_row(record, letters) for record in kept]
    scores = np.array(rows, np.float64).reshape(len(kept), len(letters))
    gold = [[letter in record.answer for letter in letters] for record in kept]
    marks = np.array(gold, np.bool_).reshape(scores.shape) & np.isfinite(scores)
    return Distributions(kept, letters, normalised(scores), marks, dict(left))


def _unfit(record: Record) -> str:
    if record.bounded:
        return "bounded"
    if max(map(len, record.logprobs), default=1) > 1:
        return "strings"
    if not all(map(math.isfinite, (record.logits or record.logprobs).values())):
        return "not finite"
    return ""


def _row(record: Record, letters: Sequence[str]) -> list[float]:
    found = record.logits or record.logprobs
    if len(found) == len(letters):
        return [found[letter] for letter in letters]
    return [found.get(letter, -math.inf) for letter in letters]


def normalised(scores: Floats) -> Floats:
    """Log-probabilities from scores: what is common to a row cancels out."""
    if not scores.size:
        return scores
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def halves(found: Distributions, seed: int) -> Flags | None:
    """One half of the clusters, drawn at random; None where there are fewer than two."""
    clusters = found.clusters
    names = sorted(set(clusters))
    if len(names) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(names))
    first = {names[i] for i in order[: len(names) // 2].tolist()}
    return np.array([name in first for name in clusters])


def crossed(
    found: Distributions, half: Flags, of: Callable[[Distributions, Distributions], Floats]
) -> Floats:
    """Each half's log-probabilities, changed by what the other half teaches: `of(half, other)`."""
    out = np.empty_like(found.logs)
    for rows in (half, ~half):
        out[rows] = of(found.chosen(rows), found.chosen(~rows))
    return out
