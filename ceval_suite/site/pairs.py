"""Every two models of a column, item by item; what a board may say of the best follows from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from ceval_suite import stats
from ceval_suite.comparison import Side, Versus, versus
from ceval_suite.errors import RunError
from ceval_suite.schema import Estimate

MOST = 12
"""Models up to which every two are compared when a site is built; 12 make 66 pairs."""

ALPHA = 0.05


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
            out[one, two] = content(versus(sides[one], sides[two]))
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


def marks(pairs: Mapping[tuple[str, str], Any], values: Mapping[str, float]) -> dict[str, str]:
    """Model → `best` or `tied`, by paired tests of the best model with every other (Holm).

    The best is marked only where it differs from all others; those that do not differ from it are
    tied with it, and so is the best itself then. A model that was not compared gets no mark.
    """
    if len(values) < 2:
        return {}
    best = max(values, key=lambda name: values[name])
    others = [name for name in values if name != best]
    found = [pairs.get((best, name)) or pairs.get((name, best)) for name in others]
    if any(one is None for one in found):
        return {}
    adjusted = holm([float(one["p"]) for one in found if one])
    tied = [name for name, p in zip(others, adjusted, strict=True) if p >= ALPHA]
    return dict.fromkeys([best, *tied], "tied") if tied else {best: "best"}


def holm(ps: Sequence[float]) -> list[float]:
    """p-values adjusted for their number (Holm 1979), in the order given."""
    known = getattr(stats, "holm", None)
    if known is not None:
        return list(known(ps))
    order = sorted(range(len(ps)), key=lambda k: ps[k])
    out, most = [0.0] * len(ps), 0.0
    for rank, k in enumerate(order):
        most = max(most, min(1.0, (len(ps) - rank) * ps[k]))
        out[k] = most
    return out
