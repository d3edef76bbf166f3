"""Intervals by resampling: stratified by subject, clustered by passage, with explicit seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ceval_suite.schema import Estimate

Floats = NDArray[np.float64]

SEED = 20261125
"""Where no other is given; every bootstrap is repeatable."""

DRAWS = 2000
"""Resamples of a bootstrap."""


@dataclass(frozen=True)
class Stratum:
    """What was measured in one subject: a value an item, and the name of what it belongs to."""

    values: Sequence[float]
    clusters: Sequence[str]


def replicates(strata: Sequence[Stratum], *, seed: int = SEED, draws: int = DRAWS) -> Floats:
    """Resampled means, one row a draw and one column a stratum.

    Whole clusters are drawn with replacement within each stratum, one fewer than there are: so the
    resampled means vary as much as means of such strata do, and not less, as they otherwise would
    in small ones (Rao and Wu 1988, JASA 83:231). A stratum with one cluster cannot tell how it
    would vary; it takes the deviation of any cluster of all strata from their common mean.

    Raises:
        ValueError: no strata, or one without items.
    """
    if not strata:
        raise ValueError("an average of nothing has no value")
    draw = np.random.default_rng(seed)
    kinds = [_kinds(stratum) for stratum in strata]
    pool = np.concatenate([sums / sizes for sums, sizes, _ in kinds])
    often = np.concatenate([count for _, _, count in kinds])
    pool = pool - pool @ often / often.sum()
    out = np.empty((draws, len(strata)))
    for column, (sums, sizes, count) in enumerate(kinds):
        clusters = int(count.sum())
        if clusters == 1:
            picked = draw.choice(pool, size=draws, p=often / often.sum())
            out[:, column] = sums[0] / sizes[0] + picked
            continue
        # clusters that are alike are drawn together: it takes one number for each kind of them
        drawn = draw.multinomial(clusters - 1, count / clusters, size=draws)
        out[:, column] = (drawn * sums).sum(1) / (drawn * sizes).sum(1)
    return out


def _kinds(stratum: Stratum) -> tuple[Floats, Floats, Floats]:
    """The sums and sizes of a stratum's clusters, and how many clusters have these."""
    if not len(stratum.values):
        raise ValueError("a stratum of no items has no mean")
    place: dict[str, int] = {}
    index = [place.setdefault(name, len(place)) for name in stratum.clusters]
    sums = np.bincount(index, weights=np.asarray(stratum.values, np.float64))
    sizes = np.bincount(index).astype(np.float64)
    rows: Floats = np.stack([sums, sizes], 1).astype(np.float64)
    found, count = np.unique(rows, axis=0, return_counts=True)
    return found[:, 0], found[:, 1], count.astype(np.float64)


def averages(
    strata: Sequence[Stratum],
    weights: Mapping[str, Sequence[float]],
    *,
    seed: int = SEED,
    draws: int = DRAWS,
) -> dict[str, tuple[Estimate, float]]:
    """Weighted means of the strata's means, by name: 95 % percentile intervals, and p of none.

    Of paired differences this is the paired bootstrap. The two-sided p counts the resamples on the
    far side of 0, the sample itself among them, so that it is never 0.

    Raises:
        ValueError: a stratum without items, or no weight at all.
    """
    found = replicates(strata, seed=seed, draws=draws)
    means = np.array([sum(one.values) / len(one.values) for one in strata])
    n = sum(len(one.values) for one in strata)
    return {name: _average(found, means, of, n) for name, of in weights.items()}


def _average(
    replicates: Floats, means: Floats, weights: Sequence[float], n: int
) -> tuple[Estimate, float]:
    total = float(sum(weights))
    if total <= 0:
        raise ValueError("an average of nothing has no value")
    shares = np.asarray(weights, np.float64) / total
    found = (replicates * shares).sum(1)
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    near = 1e-12  # equal but for rounding
    tail = min(int((found <= near).sum()), int((found >= -near).sum()))
    p = min(1.0, 2 * (tail + 1) / (len(found) + 1))
    value, error = float((means * shares).sum()), float(found.std(ddof=1))
    return Estimate(value=value, n=n, stderr=error, low=low, high=high), p


def ratio(
    over: Sequence[float], under: Sequence[float], *, seed: int = SEED, draws: int = DRAWS
) -> Estimate:
    """Σ over / Σ under, with a percentile bootstrap over the pairs (Efron 1979).

    Raises:
        ValueError: fewer than two pairs, from which no interval can be had.
    """
    n = len(over)
    if n < 2:
        raise ValueError("an interval needs at least two texts")
    pairs = np.stack([np.asarray(over, np.float64), np.asarray(under, np.float64)])
    draw = np.random.default_rng(seed)
    found = np.empty(draws)
    step = max(1, 2**22 // n)  # resamples held at once
    for at in range(0, draws, step):
        index = draw.integers(n, size=(min(step, draws - at), n))
        sums = pairs[:, index].sum(-1)
        found[at : at + step] = sums[0] / sums[1]
    value = float(pairs[0].sum() / pairs[1].sum())
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return Estimate(value=value, n=n, stderr=float(found.std(ddof=1)), low=low, high=high)
