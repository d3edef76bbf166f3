"""Values → Estimates: intervals of shares, means of subjects and weighted rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.stats import norm

from ceval_suite.schema import Estimate

Z = float(norm.ppf(0.975))


def wilson(successes: float, n: int) -> Estimate:
    """A share with its 95 % Wilson score interval (Wilson 1927).

    Raises:
        ValueError: no items.
    """
    if n <= 0:
        raise ValueError("a share of no items has no value")
    p = successes / n
    stderr = math.sqrt(p * (1 - p) / n)
    centre = (p + Z * Z / (2 * n)) / (1 + Z * Z / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n)) / (1 + Z * Z / n)
    return Estimate(
        value=p, n=n, stderr=stderr, low=max(0.0, centre - half), high=min(1.0, centre + half)
    )


def weighted(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
    """A weighted mean of independent shares: its standard error is √(Σ w²se²)/Σ w.

    With equal weights this is a macro average, whose error is √(Σ se²)/k and not the mean of the
    errors. Subjects in which every item was right or wrong have no observed variance; theirs is
    taken from their Wilson interval, so that a mean over small subjects is not overly sure.
    The interval is normal, cut at 0 and 1.

    Raises:
        ValueError: nothing to average.
    """
    total = sum(weights)
    if not parts or total <= 0:
        raise ValueError("an average of nothing has no value")
    value = sum(w * p.value for p, w in zip(parts, weights, strict=True)) / total
    errors = [p.stderr or (p.high - p.low) / (2 * Z) for p in parts]
    stderr = math.sqrt(sum((w * e) ** 2 for e, w in zip(errors, weights, strict=True))) / total
    return Estimate(
        value=value,
        n=sum(p.n for p in parts),
        stderr=stderr,
        low=max(0.0, value - Z * stderr),
        high=min(1.0, value + Z * stderr),
    )
