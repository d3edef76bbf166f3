"""Which of many models are better than which, on the same items: paired tests, ranks, agreement.

Every average (over items, over subjects, of points) is a sum over units: an item, or the items that
belong together. Two models differ by the sum of what each unit gives to one and not to the other,
so all pairs of a thousand models come out of one matrix product.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special

from ceval_suite.outcomes import Outcomes

Matrix: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]

ALPHA = 0.05

EXACT = 1000
"""Discordant items up to which McNemar's p is exact; beyond, normal with continuity correction."""

_FEW = 20_000
"""Pairs up to which an effective number of differing units is worked out one by one."""

_SURE = 64
"""So many units that differ say whatever they say; how many more there are is not counted."""


@dataclass(frozen=True)
class Pairs:
    """All pairs of models in one column.

    `difference[i, j]` is the average of model i less that of j, `variance` its variance if neither
    is better, `units` how many units differ (an effective number, where they weigh differently),
    and `p` the two-sided p of none being better.
    """

    difference: Matrix
    variance: Matrix
    units: Matrix
    p: Matrix


@dataclass(frozen=True)
class Ranks:
    """Ranks that the data allow, one entry a model: from `low` (the best it can be) to `high`.

    `best` is the model with the highest average, and `sole` says that it is better than every
    other one; `tied` marks those that cannot be told from the best.
    """

    low: list[int]
    high: list[int]
    best: int
    sole: bool
    tied: list[bool]

    def mark(self, at: int) -> Literal["best", "tied", ""]:
        """What may be said of a model: better than all others, or not to be told from the best."""
        if self.sole:
            return "best" if at == self.best else ""
        return "tied" if at == self.best or self.tied[at] else ""


@dataclass(frozen=True)
class Agreement:
    """How two columns order the models that both have: Kendall's tau-b and Spearman's rho."""

    n: int
    kendall: float
    kendall_p: float
    spearman: float
    spearman_p: float


def weights(rule: str, counts: Mapping[str, int], points: Mapping[str, float]) -> Matrix:
    """What a right answer in each subject adds to an average: micro, macro or points."""
    n = np.array(list(counts.values()), np.float64)
    if rule == "macro":
        return 1 / (len(n) * n)
    worth = np.array([points.get(s, 1.0) if rule == "points" else 1.0 for s in counts], np.float64)
    return worth / float((worth * n).sum())


def pairs(runs: Sequence[Outcomes], rule: str, points: Mapping[str, float]) -> Pairs:
    """Paired tests of every two runs of the same items.

    Two runs over single items are compared by McNemar's exact test where every item counts alike.
    Otherwise the sign of each unit's difference is as good as tossed if neither model is better:
    the sum of the differences has the sum of their squares as its variance, and is taken as normal
    (a randomisation test, Fisher 1935). No p is below that of as many equal units all pointing one
    way, 2^(1 - units): a handful of items is never sure.

    Raises:
        ValueError: runs of different items.
    """
    first = runs[0]
    if any(run.ids_sha256 != first.ids_sha256 for run in runs):
        raise ValueError("only runs of the same items can be compared")
    each = weights(rule, first.subjects, points)[first.subject]
    plain = first.cluster is None and all(
        bool(np.isin(run.values[:, _column(rule)], (0, 1)).all()) for run in runs
    )
    units = _units(runs, rule, each)
    average = units.sum(1, dtype=np.float64)
    gram = _gram(units)
    square = np.diagonal(gram)
    variance = np.maximum(0.0, square[:, None] + square[None, :] - 2 * gram)
    span = float((units.max(0) - units.min(0)).max()) if len(units.T) else 0.0
    # what rounding leaves of two runs that are alike
    variance[variance < 1e-5 * span**2] = 0.0
    alike = len(each) > 0 and bool((each == each[0]).all())
    if plain and alike:
        count = np.rint(variance / each[0] ** 2)
        return _mcnemar(average, variance, count, each[0])
    count = variance / span**2 if span else variance  # at least so many
    if plain and len(runs) > 1 and _least(count) < _SURE:
        binary = _gram((units > 0).astype(np.float32))
        ones = np.diagonal(binary)
        count = ones[:, None] + ones[None, :] - 2 * binary
    elif not plain:
        _effective(units, variance, count)
    return _tossed(average[:, None] - average[None, :], variance, count)


def _tossed(difference: Matrix, variance: Matrix, count: Matrix) -> Pairs:
    p = np.ones_like(variance)
    unlike = np.triu(variance > 0, 1)  # of each pair once
    some = 2 * special.ndtr(-np.abs(difference[unlike]) / np.sqrt(variance[unlike]))
    units = count[unlike]
    few = units < _SURE
    some[few] = np.minimum(1.0, np.maximum(some[few], np.exp2(1 - units[few])))
    p[unlike] = p.T[unlike] = some
    return Pairs(difference, variance, count, p)


def _effective(units: NDArray[np.float32], variance: Matrix, count: Matrix) -> None:
    """Replace low bounds of differing units by their effective number, (Σd²)²/Σd⁴, never more."""
    first, second = np.nonzero(np.triu((count < _SURE) & (variance > 0), 1))
    if len(first) > _FEW:
        return  # the bound stays: a p may be higher than it must be
    for at in range(0, len(first), 256):
        i, j = first[at : at + 256], second[at : at + 256]
        fourth = ((units[i] - units[j]).astype(np.float64) ** 4).sum(1)
        count[i, j] = count[j, i] = variance[i, j] ** 2 / fourth


def _least(count: Matrix) -> float:
    """The smallest number beside the diagonal."""
    return float((count + np.diag(np.full(len(count), np.inf))).min())


def _column(rule: str) -> int:
    """Which of an outcome's two values an average is of: being right, or the points earned."""
    return 1 if rule == "points" else 0


def _units(runs: Sequence[Outcomes], rule: str, each: Matrix) -> NDArray[np.float32]:
    column = _column(rule)
    values = np.empty((len(runs), len(each)), np.float32)
    worth = each.astype(np.float32)
    for run, row in zip(runs, values, strict=True):
        np.multiply(run.values[:, column].astype(np.float32)[run.codes], worth, out=row)
    cluster = runs[0].cluster
    if cluster is None:
        return values
    order = np.argsort(cluster, kind="stable")
    starts = np.flatnonzero(np.diff(cluster[order], prepend=-1))
    return np.add.reduceat(values[:, order], starts, axis=1)


def _gram(values: NDArray[np.float32]) -> Matrix:
    """values · valuesᵀ in blocks: what a block sums in single precision stays exact enough."""
    total = np.zeros((len(values), len(values)))
    for at in range(0, values.shape[1], 4096):
        block = values[:, at : at + 4096]
        total += block @ block.T
    return total


def _mcnemar(average: Matrix, variance: Matrix, count: Matrix, each: float) -> Pairs:
    """p of the smaller of two numbers of discordant items, for every pair."""
    difference = average[:, None] - average[None, :]
    net = np.rint(np.abs(difference) / each)
    # of a symmetric binomial; half an item nearer to the middle (Edwards 1948)
    p = 2 * special.ndtr(-np.maximum(0.0, net - 1) / np.sqrt(np.maximum(count, 1.0)))
    few = np.triu(count <= EXACT, 1)
    below = (count[few] - net[few]) / 2
    p[few] = 2 * special.bdtr(below, count[few].astype(np.int64), 0.5)
    p.T[few] = p[few]
    np.fill_diagonal(p, 1.0)
    return Pairs(difference, variance, count, np.minimum(1.0, p))


def of(found: Pairs, models: Sequence[int]) -> Pairs:
    """The pairs of some of the models, in the order given."""
    if list(models) == list(range(len(found.p))):
        return found
    at = np.ix_(models, models)
    return Pairs(found.difference[at], found.variance[at], found.units[at], found.p[at])


def joined(parts: Sequence[Pairs]) -> Pairs:
    """The pairs of a mean of several columns, each with the same models in the same order.

    The columns' items are independent, so differences and variances add up; p is normal, and never
    below what so many units can say.
    """
    k = len(parts)
    difference = sum((part.difference for part in parts), np.zeros_like(parts[0].p)) / k
    variance = sum((part.variance for part in parts), np.zeros_like(parts[0].p)) / k**2
    units = sum((part.units for part in parts), np.zeros_like(parts[0].p))
    return _tossed(difference, variance, units)


def holm(p: Matrix) -> Flags:
    """Which comparisons of each row hold by Holm's rule (1979), the diagonal left out."""
    m = len(p)
    if m < 2:
        return np.zeros((m, m), bool)
    others = p.copy()
    np.fill_diagonal(others, np.inf)
    inorder = np.sort(others, axis=1)[:, : m - 1]
    held = np.logical_and.accumulate(inorder <= ALPHA / np.arange(m - 1, 0, -1), axis=1)
    # equal p's stand or fall together: the next one is asked for less
    last = np.where(held, inorder, -1.0).max(1)
    return others <= last[:, None]


def ranks(found: Pairs) -> Ranks:
    """The ranks that each model can have: 1 + those better than it, to n - those worse.

    Holm's rule is applied within a model's comparisons with all others, so that its interval holds
    with 95 %: the marginal confidence set for the rank of one model of Mogstad, Romano, Shaikh and
    Wilhelm (2024, Review of Economic Studies 91:476), here from paired tests.
    """
    told = holm(found.p)
    better = (told & (found.difference < 0)).sum(1)
    worse = (told & (found.difference > 0)).sum(1)
    m = len(found.p)
    best = int(np.argmax(found.difference.sum(1))) if m else 0
    beaten = told[best] & (found.difference[best] > 0) if m else np.zeros(0, bool)
    tied = [not bool(b) and at != best for at, b in enumerate(beaten)]
    return Ranks(
        low=[int(1 + b) for b in better],
        high=[int(m - w) for w in worse],
        best=best,
        sole=m > 1 and not any(tied),
        tied=tied,
    )


def agreement(first: Mapping[str, float], second: Mapping[str, float]) -> Agreement | None:
    """How alike two columns order the models that both have; None with fewer than three."""
    common = [name for name in first if name in second]
    if len(common) < 3:
        return None
    a, b = ([of[name] for name in common] for of in (first, second))
    if len(set(a)) == 1 or len(set(b)) == 1:
        return None
    from scipy.stats import kendalltau, spearmanr  # a second of imports that a board does without

    tau: Any = kendalltau(a, b)
    rho: Any = spearmanr(a, b)
    values = [float(x) for x in (tau.statistic, tau.pvalue, rho.statistic, rho.pvalue)]
    if any(math.isnan(value) for value in values[::2]):
        return None
    return Agreement(len(common), *values)
