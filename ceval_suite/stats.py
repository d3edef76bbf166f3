"""Values → Estimates: intervals of shares, means of subjects, rates and paired differences."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import bdtr, betaincinv, ndtr, ndtri, stdtr, stdtrit

from ceval_suite.schema import Estimate

Z = float(ndtri(0.975))


def wilson(successes: float, n: int) -> Estimate:
    """A share with its 95 % Wilson score interval (Wilson 1927).

    Raises:
        ValueError: no items.
    """
    if n <= 0:
        raise ValueError("a share of no items has no value")
    p = successes / n
    low, high = share_interval(p, n)
    return Estimate(value=p, n=n, stderr=math.sqrt(p * (1 - p) / n), low=low, high=high)


def clopper_pearson(successes: int, n: int) -> Estimate:
    """A share with its 95 % interval by Clopper and Pearson (1934).

    It covers at least what it promises for every true share, and so in most cases more: about 96 %
    where Wilson's covers 95 %. For claims that must hold, not for comparing models.

    Raises:
        ValueError: no items.
    """
    found = wilson(successes, n)
    low = float(betaincinv(successes, n - successes + 1, 0.025)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 0.975)) if successes < n else 1.0
    return Estimate(value=found.value, n=n, stderr=found.stderr, low=low, high=high)


def share_interval(p: float, n: float) -> tuple[float, float]:
    """Wilson's interval of a share, of as many items as know as much."""
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def share(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The mean of values in [0, 1], with a 95 % interval that knows what belongs together.

    Values that share a name in `clusters` (sub-questions of one item) are not independent. The
    interval is Wilson's where every value is 0 or 1 and alone in its cluster; else Wilson's for as
    many independent answers as would give the variance that was observed between clusters, with
    Student's t for few of them (Franco et al. 2019, J. Survey Statistics and Methodology 7:334).

    Raises:
        ValueError: no values.
    """
    n, groups = len(values), len(set(clusters))
    if groups == n and all(value in (0, 1) for value in values):
        return wilson(sum(values), n)
    p = math.fsum(values) / n
    variance = _variance(values, clusters)
    effective = p * (1 - p) / variance if variance else groups
    low, high = share_interval(p, effective * (Z / _quantile(groups)) ** 2)
    return Estimate(value=p, n=n, stderr=math.sqrt(variance), low=min(low, p), high=max(high, p))


def mean(values: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The mean of values of any size, with Student's 95 % interval over clusters.

    With a single cluster nothing is known about others: the interval is endless.

    Raises:
        ValueError: no values.
    """
    n, groups = len(values), len(set(clusters))
    if not n:
        raise ValueError("a mean of no values has no value")
    value = math.fsum(values) / n
    if groups == 1:
        return Estimate(value=value, n=n, stderr=math.inf, low=-math.inf, high=math.inf)
    stderr = math.sqrt(_variance(values, clusters))
    half = _quantile(groups) * stderr
    return Estimate(value=value, n=n, stderr=stderr, low=value - half, high=value + half)


def _quantile(groups: int) -> float:
    """Half the width of a 95 % interval in standard errors, seen in so many clusters."""
    return float(stdtrit(groups - 1, 0.975)) if groups > 1 else Z


def _variance(values: Sequence[float], clusters: Sequence[str]) -> float:
    """The variance of a mean of clustered values, never below that of independent ones.

    0.0 where nothing varies; with a single cluster nothing is known about others, and the values
    count as one.
    """
    n = len(values)
    mean = math.fsum(values) / n
    sums: defaultdict[str, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    if len(sums) == 1:
        return mean * (1 - mean)
    found = [
        count / (count - 1) * math.fsum(x * x for x in off) / n**2
        for count, off in ((len(sums), sums.values()), (n, [v - mean for v in values]))
    ]
    return max(found) if max(found) > 1e-20 else 0.0  # what rounding leaves of equal values


def weighted(parts: Sequence[Estimate], weights: Sequence[float], least: float = 0.0) -> Estimate:
    """A weighted mean of independent shares: its standard error is √(Σ w²se²)/Σ w.

    With equal weights this is a macro average, whose error is √(Σ se²)/k and not the mean of the
    errors. Subjects in which every item was right or wrong have no observed variance; theirs is
    taken from their Wilson interval, so that a mean over small subjects is not overly sure.
    The interval is normal, cut at `least` and 1. The variance p(1-p)/n that small subjects show is
    (n-1)/n of what it should be on average; the interval makes up for that, where it is of shares
    (`least` is 0; differences have unbiased variances).

    Raises:
        ValueError: nothing to average.
    """
    total = sum(weights)
    if not parts or total <= 0:
        raise ValueError("an average of nothing has no value")
    value = sum(w * p.value for p, w in zip(parts, weights, strict=True)) / total
    errors = [p.stderr or (p.high - p.low) / (2 * Z) for p in parts]
    variances = [(w * e / total) ** 2 for e, w in zip(errors, weights, strict=True)]
    more = [p.n / (p.n - 1) if least == 0 and p.n > 1 and p.stderr else 1.0 for p in parts]
    half = Z * math.sqrt(sum(v * m for v, m in zip(variances, more, strict=True)))
    return Estimate(
        value=value,
        n=sum(p.n for p in parts),
        stderr=math.sqrt(sum(variances)),
        low=max(least, value - half),
        high=min(1.0, value + half),
    )


@dataclass(frozen=True)
class Pairs:
    """Pairs of right and wrong answers to the same items of one stratum.

    `fixed` items are wrong on the first side and right on the second, `broke` the other way round;
    on the rest of the `n` items the sides are alike.
    """

    n: int
    fixed: int
    broke: int


def normal_p(found: Estimate) -> float:
    """Two-sided p of a difference being none, by its standard error.

    Where nothing varied the error is taken from the interval, so that few items are not sure.
    """
    error = found.stderr or (found.high - found.low) / (2 * Z)
    return float(2 * ndtr(-abs(found.value) / error))


def student_p(found: Estimate, groups: int) -> float:
    """Two-sided p of a mean difference being none, by its standard error over so many clusters."""
    if groups < 2 or not found.stderr:
        return normal_p(found)
    return float(2 * stdtr(groups - 1, -abs(found.value) / found.stderr))


def mcnemar(fixed: int, broke: int) -> float:
    """Exact two-sided p of McNemar's test: are items as likely to be fixed as to be broken?

    It never rejects more often than it says, and with few such items far less often.
    """
    return min(1.0, 2 * float(bdtr(min(fixed, broke), fixed + broke, 0.5)))


def holm(ps: Sequence[float]) -> list[float]:
    """P-values adjusted for being several, in their order (Holm 1979): step-down, at most 1."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    out, least = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(ps) - rank) * ps[i]))
        out[i] = least
    return out


def difference(n: int, fixed: int, broke: int) -> Estimate:
    """The second side's share of right answers less the first's, with Tango's score interval.

    Its standard error is that of a mean of differences.

    Raises:
        ValueError: no items.
    """
    if n <= 0:
        raise ValueError("a difference over no items has no value")
    value = (fixed - broke) / n
    stderr = math.sqrt(max(0.0, (fixed + broke) / n - value**2) / n)
    low, high = score_interval(n, fixed, broke)
    return Estimate(value=value, n=n, stderr=stderr, low=low, high=high)


def mean_difference(changes: Sequence[float], clusters: Sequence[str]) -> Estimate:
    """The mean of paired differences of scores in [-1, 1] over clustered items, with its interval.

    The interval is Student's over clusters; where nothing varies, Tango's with one answer a
    cluster, so that it is never empty.

    Raises:
        ValueError: no items.
    """
    n, groups = len(changes), len(set(clusters))
    if n <= 0:
        raise ValueError("a difference over no items has no value")
    value = math.fsum(changes) / n
    if groups == 1 or not (variance := _variance(changes, clusters)):
        low, high = score_interval(groups, groups * max(0.0, value), groups * max(0.0, -value))
        return Estimate(value=value, n=n, stderr=0.0, low=low, high=high)
    half = _quantile(groups) * math.sqrt(variance)
    return Estimate(
        value=value,
        n=n,
        stderr=math.sqrt(variance),
        low=max(-1.0, value - half),
        high=min(1.0, value + half),
    )


def weighted_difference(strata: Sequence[Pairs], weights: Sequence[float]) -> Estimate:
    """A weighted mean of the strata's differences, with a 95 % interval.

    The variance is that of a stratified sample, Σ w²s²/n with unbiased s² (Cochran 1977, 5.3). The
    interval is Tango's for as many items as would give this variance without strata (the effective
    sample size of survey statistics), so that it neither leaves [-1, 1] nor is empty where the
    sides differ nowhere; there, and at most, it is 1/Σ(w²/n).

    Raises:
        ValueError: nothing to average.
    """
    n, fixed, broke, variance = effective(strata, weights)
    low, high = score_interval(n, fixed, broke)
    return Estimate(
        value=(fixed - broke) / n,
        n=sum(s.n for s in strata),
        stderr=math.sqrt(variance),
        low=low,
        high=high,
    )


def score_p(fixed: float, broke: float) -> float:
    """Two-sided p of McNemar's score test without a correction.

    It is below 5 % where Tango's interval leaves 0 out, and rejects equal models in about 5 %
    of draws from some ten discordant items on, where the exact test stays well below (Fagerland,
    Lydersen and Laake 2013, BMC Medical Research Methodology 13:91).
    """
    return float(2 * ndtr(-abs(fixed - broke) / math.sqrt(fixed + broke))) if fixed + broke else 1.0


def weighted_p(strata: Sequence[Pairs], weights: Sequence[float]) -> float:
    """Two-sided p of a weighted difference being none: the score test of its interval.

    Raises:
        ValueError: nothing to average.
    """
    _, fixed, broke, _ = effective(strata, weights)
    return score_p(fixed, broke)


def effective(
    strata: Sequence[Pairs], weights: Sequence[float]
) -> tuple[float, float, float, float]:
    """The sample without strata that knows as much: items, fixed, broke; and the variance.

    Raises:
        ValueError: nothing to average.
    """
    total = sum(weights)
    if not strata or total <= 0 or any(s.n <= 0 for s in strata):
        raise ValueError("an average of nothing has no value")
    parts = [(w / total, s) for s, w in zip(strata, weights, strict=True)]
    fixed = sum(w * s.fixed / s.n for w, s in parts)
    broke = sum(w * s.broke / s.n for w, s in parts)
    spread = fixed + broke - (fixed - broke) ** 2
    variance = sum(w**2 * _unbiased(s, spread) / s.n for w, s in parts)
    items = spread / variance if variance > 0 else 1 / sum(w**2 / s.n for w, s in parts)
    return items, fixed * items, broke * items, variance


def _unbiased(pairs: Pairs, spread: float) -> float:
    """The variance of a stratum's differences; of a single item, that of all."""
    if pairs.n == 1:
        return spread
    mean = (pairs.fixed - pairs.broke) / pairs.n
    return ((pairs.fixed + pairs.broke) / pairs.n - mean**2) * pairs.n / (pairs.n - 1)


def restricted_score(n: float, fixed: float, broke: float, delta: float) -> float:
    """How many standard errors a paired difference lies from `delta`, if that were the truth.

    Tango's statistic: the probability of a broken item is taken at its maximum likelihood under
    `delta`. With a `delta` of 0 it is McNemar's.
    """
    a = 2 * n
    b = (2 * n - fixed + broke) * delta - fixed - broke
    c = -broke * delta * (1 - delta)
    q = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = n * (2 * q + delta * (1 - delta))
    distance = fixed - broke - n * delta
    if abs(distance) < 1e-12 * n:  # at the estimate itself
        return 0.0
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(1e9, distance)


def score_interval(n: float, fixed: float, broke: float, z: float = Z) -> tuple[float, float]:
    """Tango's score interval of a paired difference (Tango 1998, Statistics in Medicine 17:891).

    Its ends are the differences that a score test just does not reject, at 5 % or at another `z`.
    """

    def end(sign: float) -> float:
        def beyond(delta: float) -> float:
            return restricted_score(n, fixed, broke, delta) + sign * z

        last = sign * (1 - 1e-12)
        # the score falls from the estimate on; at the border of what is possible it is endless
        if sign * value < 1 - 1e-12 and -sign * restricted_score(n, fixed, broke, last) > z:
            from scipy.optimize import brentq  # a second of imports that a board does without

            root: Any = brentq(beyond, value, last)
            return float(root)
        return sign

    value = (fixed - broke) / n
    return end(-1.0), end(1.0)
