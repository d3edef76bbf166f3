"""What changed from one run to another, item by item: verdicts, predictions, probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ceval_suite import distributions, methods, stats
from ceval_suite.distributions import Distributions, Floats
from ceval_suite.methods import Answer
from ceval_suite.schema import Estimate, Record

Pair = tuple[Record, Record]
Both = tuple[Distributions, Distributions]

KEPT = "right → right"
BROKE = "right → wrong"
FIXED = "wrong → right"
OTHER = "wrong → other wrong"
SAME = "wrong → same wrong"
KINDS: tuple[str, ...] = (KEPT, BROKE, FIXED, OTHER, SAME)


@dataclass(frozen=True)
class Change:
    """One labelled item that both answered.

    `margin` is how much further the gold letter got ahead of the best other one, in nats; None
    where a side has no distribution over the item's letters.
    """

    id: str
    subject: str
    gold: tuple[str, ...]
    first: tuple[str, ...]
    second: tuple[str, ...]
    kind: str
    margin: float | None


@dataclass(frozen=True)
class Likeness:
    """How alike two runs answer, right or wrong.

    `same` is the share of equal predictions (no answer equals no answer), `kappa` Cohen's.
    `divergence` is the mean of KL(first ‖ second), in nats, over the items where both have a
    distribution over the same letters; None where there is none. `left_out` are the others.
    """

    same: Estimate
    kappa: float | None
    divergence: Estimate | None
    left_out: int


def kind(first: Record, second: Record) -> str:
    """The cell of the flip matrix that a labelled item lies in; no answer is wrong."""
    if first.correct:
        return KEPT if second.correct else BROKE
    if second.correct:
        return FIXED
    return SAME if first.prediction == second.prediction else OTHER


def matrix(pairs: Sequence[Pair]) -> dict[str, int]:
    """How many labelled items lie in each cell, the empty ones too."""
    out = dict.fromkeys(KINDS, 0)
    for one, two in pairs:
        out[kind(one, two)] += 1
    return out


def both(pairs: Sequence[Pair]) -> Both:
    """The distributions of both sides on the items where both have one over the same letters."""
    one, two = (distributions.of([pair[k] for pair in pairs]) for k in (0, 1))
    theirs = {record.id: record.logprobs.keys() for record in two.records}
    common = {r.id for r in one.records if theirs.get(r.id) == r.logprobs.keys()}
    # rows are in the order of ids on both sides; columns are the letters that are left
    first, second = (
        side.chosen(np.array([r.id in common for r in side.records], np.bool_))
        for side in (one, two)
    )
    letters = sorted({letter for r in first.records for letter in r.logprobs})
    return first.columns(letters), second.columns(letters)


def changes(pairs: Sequence[Pair], both: Both) -> list[Change]:
    """All labelled items, those fixed or broken first, the largest change of margin first."""
    one, two = both
    moved = (_lead(two) - _lead(one)).tolist() if one.records else []
    margin: Mapping[str, float] = {
        r.id: value for r, value in zip(one.records, moved, strict=True) if np.isfinite(value)
    }
    found = [
        Change(
            id=a.id,
            subject=a.subject,
            gold=tuple(a.answer),
            first=tuple(a.prediction),
            second=tuple(b.prediction),
            kind=kind(a, b),
            margin=margin.get(a.id),
        )
        for a, b in pairs
    ]
    return sorted(found, key=lambda c: (c.kind not in (FIXED, BROKE), -abs(c.margin or 0.0), c.id))


def _lead(found: Distributions) -> Floats:
    """The log-probability of the likeliest gold letter less that of the likeliest other one."""
    gold = np.where(found.gold, found.logs, -np.inf).max(1)
    other = np.where(found.gold, -np.inf, found.logs).max(1)
    known = np.isfinite(gold) & np.isfinite(other)
    return np.where(known, np.where(known, gold, 0) - np.where(known, other, 0), np.nan)


def likeness(pairs: Sequence[Pair], both: Both) -> Likeness:
    """How alike two runs answer the items that both have, labelled or not."""
    ours, theirs = (
        {
            p[k].id: Answer(tuple(p[k].prediction), bool(p[k].correct), methods.cluster(p[k]))
            for p in pairs
        }
        for k in (0, 1)
    )
    same = [float(a.prediction == b.prediction) for a, b in pairs]
    one, two = both
    return Likeness(
        same=stats.share(same, [methods.cluster(a) for a, _ in pairs]),
        kappa=methods.agreement(ours, theirs).kappa,
        divergence=one.mean(_divergence(one, two)) if one.records else None,
        left_out=len(pairs) - len(one.records),
    )


def _divergence(one: Distributions, two: Distributions) -> Floats:
    """KL divergence of the second side's distribution from the first's, for each row."""
    p = np.exp(one.logs)
    gap = np.where(one.there, one.logs, 0.0) - np.where(one.there, two.logs, 0.0)
    return np.maximum(0.0, (p * gap).sum(1))
