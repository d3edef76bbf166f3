"""How small a difference a paired comparison can see, and how many items it takes to see one."""

from __future__ import annotations

import math

from scipy.special import ndtri

POWER = 0.8
"""The chance of finding a difference that is there, where no other is asked for."""

ALPHA = 0.05


def detectable(
    n: float, discordance: float, *, power: float = POWER, alpha: float = ALPHA
) -> float | None:
    """The smallest difference in accuracy that a two-sided test of `n` paired items finds.

    `discordance` is the share of items that only one side has right, seen or assumed. The sample
    size of McNemar's test (Connor 1987, Biometrics 43:207), solved for the difference; None where
    even all of the discordant items on one side would not do. For clustered items `n` is the
    number of independent ones that know as much. A normal approximation, and a little conservative
    where only some dozens are discordant.

    Raises:
        ValueError: no items, or what is no share.
    """
    if n <= 0:
        raise ValueError("a comparison of no items finds nothing")
    at, by = _quantiles(discordance, power, alpha)
    square = n * at**2 - (n + by**2) * (at**2 - by**2)
    if square < 0:  # three items or fewer
        return None
    found = math.sqrt(discordance) * (at * math.sqrt(n) + math.sqrt(square)) / (n + by**2)
    return found if 0 < found <= discordance else None


def items(
    difference: float, discordance: float, *, power: float = POWER, alpha: float = ALPHA
) -> int | None:
    """How many paired items it takes to find a difference in accuracy; None: no number does.

    Raises:
        ValueError: a difference of 0, or what is no share.
    """
    if difference == 0:
        raise ValueError("no number of items finds a difference of 0")
    at, by = _quantiles(discordance, power, alpha)
    if abs(difference) > discordance:
        return None
    root = at * math.sqrt(discordance) + by * math.sqrt(discordance - difference**2)
    return math.ceil((root / difference) ** 2)


def distance(*, power: float = POWER, alpha: float = ALPHA) -> float:
    """How many standard errors away from 0 a difference is found so often."""
    return sum(_quantiles(1.0, power, alpha))


def _quantiles(discordance: float, power: float, alpha: float) -> tuple[float, float]:
    if not 0 <= discordance <= 1 or not 0.5 <= power < 1 or not 0 < alpha < 1:
        raise ValueError("discordance, power and alpha are shares, and power is at least a half")
    return -float(ndtri(alpha / 2)), float(ndtri(power))
