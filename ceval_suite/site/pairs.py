"""Every two models of a column, item by item."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from ceval_suite.comparison import Side, Versus, versus
from ceval_suite.errors import RunError
from ceval_suite.schema import Estimate

MOST = 12
"""Models up to which every two are compared when a site is built; 12 make 66 pairs."""


def compared(sides: Mapping[str, Side], values: Mapping[str, float]) -> dict[tuple[str, str], Any]:
    """Comparisons by the names of two models; with many models, of each with the best one alone."""
    names = [name for name in sides if sides[name].records]
    pairs = list(combinations(names, 2))
    if len(names) > MOST:
        best = max(values, key=lambda name: values[name], default=names[0])
        pairs = [(best, name) for name in names if name != best]
    out: dict[tuple[str, str], Any] = {}
    for one, two in pairs:
        try:
            out[one, two] = content(versus(sides[one], sides[two], resample=False))
        except RunError:
            continue  # no item in common, or gold labels that differ: the page says so
    return out


def content(found: Versus) -> dict[str, Any]:
    """A comparison as data."""
    return {
        "n": found.n,
        "labelled": found.labelled,
        "alone": found.alone,
        "fixed": found.fixed,
        "broke": found.broke,
        "p": found.p,
        "clustered": found.clustered,
        "shots_differ": found.shots_differ,
        "same_tokenizer": found.same_tokenizer,
        "averages": {
            name: [_interval(one) for one in three] for name, three in found.averages.items()
        },
    }


def _interval(found: Estimate) -> list[float]:
    return [found.value, found.low, found.high]
