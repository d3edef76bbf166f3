"""Averages of a whole benchmark, estimated from items that were drawn subject by subject."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ceval_suite import stats
from ceval_suite.schema import Estimate


def average(
    parts: Sequence[Estimate], weights: Sequence[float], sizes: Sequence[int] | None = None
) -> Estimate:
    """A weighted mean of subjects' shares, each seen on some of its items, with a 95 % interval.

    The variance is Σ w²s²/n with unbiased s² (Cochran 1977, 5.3), that of all subjects together
    where one has a single item; the interval is Wilson's for as many items as would give it without
    strata. Without `sizes` the items stand for all that could be asked, as in a run of the whole.
    With the number that each subject has in the whole, the interval is of what the whole would
    come to: each term shrinks by the share of the subject that was seen, to nothing where all was.

    Raises:
        ValueError: nothing to average.
    """
    total = sum(weights)
    if not parts or total <= 0:
        raise ValueError("an average of nothing has no value")
    shares = [w / total for w in weights]
    value = sum(w * part.value for w, part in zip(shares, parts, strict=True))
    value = min(1.0, max(0.0, value))
    spread = value * (1 - value)
    unseen = [1 - p.n / n if n else 0.0 for p, n in zip(parts, sizes, strict=True)] if sizes else []
    left = unseen or [1.0] * len(parts)
    variance = even = 0.0
    for w, part, more in zip(shares, parts, left, strict=True):
        own = part.stderr**2 * part.n / (part.n - 1) if part.n > 1 else spread
        variance += w * w * own * max(0.0, more)
        even += w * w * max(0.0, more) / part.n
    if not even:  # all was seen
        return Estimate(value=value, n=sum(p.n for p in parts), stderr=0.0, low=value, high=value)
    low, high = stats.share_interval(value, spread / variance if variance and spread else 1 / even)
    return Estimate(
        value=value,
        n=sum(part.n for part in parts),
        stderr=math.sqrt(variance),
        low=low,
        high=high,
    )
