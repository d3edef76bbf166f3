"""Has a benchmark fallen by more than allowed? One-sided paired tests, Holm's rule, their power.

The change is the candidate's official average less the baseline's, on the same items; `margin` is
the drop that is allowed. There are two burdens of proof. With `inferiority` a benchmark fails where
it is proven to have fallen by more than its margin (the baseline is superior by more than that).
With `non-inferiority` it passes only where it is proven not to have fallen by so much.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from scipy.special import bdtr, betainc, ndtr, ndtri, stdtr, stdtrit

from ceval_suite import differences, metrics, power, stats
from ceval_suite.bootstrap import Stratum
from ceval_suite.outcomes import Outcomes
from ceval_suite.schema import Estimate
from ceval_suite.specs import Task

Mode: TypeAlias = Literal["inferiority", "non-inferiority"]

MODES: tuple[Mode, ...] = ("inferiority", "non-inferiority")

ALPHA = 0.05

FEW = 25
"""Differing items below which no p is smaller than an exact test's."""

UNSEEN = 3
"""Where fewer items differ, the power is worked out for so many (the rule of three)."""


@dataclass(frozen=True)
class Single:
    """Answers that are right or wrong, each item on its own.

    Where subjects weigh differently, `items`, `fixed` and `broke` are those of a sample without
    subjects that knows as much (`stats.effective`).
    """

    n: int
    items: float
    fixed: float
    broke: float

    @property
    def change(self) -> float:
        """The candidate's average less the baseline's."""
        return (self.fixed - self.broke) / self.items

    @property
    def discordance(self) -> float:
        """The share of items that only one side has right."""
        return (self.fixed + self.broke) / self.items

    def fell(self, margin: float) -> float:
        """One-sided p of a change of `-margin` or more, against a larger drop.

        Tango's score test; of few differing items never below McNemar's exact test, which says the
        same of a margin of 0 and is careful with a larger one.
        """
        found = float(ndtr(stats.restricted_score(self.items, self.fixed, self.broke, -margin)))
        if self.fixed + self.broke >= FEW:
            return found
        exact = float(betainc(self.broke, self.fixed + 1, 0.5)) if self.broke else 1.0
        return max(found, exact)

    def held(self, margin: float) -> float:
        """One-sided p of a drop of `margin` or more, against a smaller one, or none.

        Of few differing items never below that of so few net losses among all items.
        """
        found = float(ndtr(-stats.restricted_score(self.items, self.fixed, self.broke, -margin)))
        if self.fixed + self.broke >= FEW:
            return found
        lost = math.ceil(max(0.0, self.broke - self.fixed))
        return max(found, float(bdtr(lost, max(1, int(self.items)), margin)))

    def interval(self, alpha: float) -> tuple[float, float]:
        """The changes that neither one-sided test rejects at `alpha`."""
        return stats.score_interval(self.items, self.fixed, self.broke, -float(ndtri(alpha)))

    def error(self, drop: float) -> float:
        """The standard error of the change, if `drop` were the truth and as many items differed."""
        differing = max(self.discordance, UNSEEN / self.items, abs(drop))
        return math.sqrt(max(0.0, min(1.0, differing) - drop**2) / self.items)

    def quantile(self, alpha: float) -> float:
        """How many standard errors the test asks for."""
        return -float(ndtri(alpha))


@dataclass(frozen=True)
class Clustered:
    """Answers that share passages or are sub-questions of one item, or earn part of the points.

    `mean` is the change with its error over clusters; Student's with `groups` of them, else normal.
    """

    n: int
    mean: Estimate
    groups: int

    @property
    def change(self) -> float:
        """The candidate's average less the baseline's."""
        return self.mean.value

    def _p(self, margin: float) -> float:
        distance = (self.mean.value + margin) / self.error()
        return float(stdtr(self.groups - 1, distance) if self._student else ndtr(distance))

    @property
    def _student(self) -> bool:
        return self.groups > 1 and bool(self.mean.stderr)

    def fell(self, margin: float) -> float:
        """One-sided p of a change of `-margin` or more, against a larger drop."""
        return self._p(margin)

    def held(self, margin: float) -> float:
        """One-sided p of a drop of `margin` or more, against a smaller one, or none."""
        return 1 - self._p(margin)

    def interval(self, alpha: float) -> tuple[float, float]:
        """The changes that neither one-sided test rejects at `alpha`."""
        half = self.quantile(alpha) * self.error()
        return max(-1.0, self.change - half), min(1.0, self.change + half)

    def error(self, drop: float = 0.0) -> float:
        """The standard error of the change, whatever the truth is."""
        return self.mean.stderr or (self.mean.high - self.mean.low) / (2 * stats.Z)

    def quantile(self, alpha: float) -> float:
        """How many standard errors the test asks for."""
        return -float(stdtrit(self.groups - 1, alpha) if self._student else ndtri(alpha))


Evidence: TypeAlias = Single | Clustered


def evidence(
    task: Task,
    baseline: Outcomes,
    candidate: Outcomes,
    sizes: Mapping[str, int] | None = None,
) -> Evidence:
    """What two runs over the same items say of the change in the task's official average.

    Of a subset, `sizes` are the records that subjects have in the whole.

    Raises:
        ValueError: runs of different items.
    """
    if baseline.ids_sha256 != candidate.ids_sha256:
        raise ValueError("only runs of the same items can be compared")
    rule = task.average
    sides = (baseline, candidate)
    before, after = ((one.score if rule == "points" else one.right) for one in sides)
    counts = list(baseline.subjects.values())
    whole = {s: sizes[s] for s in baseline.subjects} if sizes else baseline.subjects
    weights = metrics.weights(rule, task, whole)
    column = 1 if rule == "points" else 0
    plain = all(bool(np.isin(one.values[:, column], (0, 1)).all()) for one in sides)
    if baseline.cluster is not None or not plain:
        change = after - before
        names = range(baseline.n) if baseline.cluster is None else baseline.cluster.tolist()
        parts: list[Stratum] = []
        for count in counts:
            at = sum(len(part.values) for part in parts)
            span = slice(at, at + count)
            parts.append(Stratum(change[span].tolist(), [str(name) for name in names[span]]))
        mean, groups = differences.clustered(parts, weights)
        return Clustered(baseline.n, mean, groups)
    subject = baseline.subject
    fixed, broke = (
        np.bincount(subject[one > other], minlength=len(counts)).tolist()
        for one, other in ((after, before), (before, after))
    )
    if rule == "micro" and not sizes:  # over items, whatever their subjects
        return Single(baseline.n, float(baseline.n), float(sum(fixed)), float(sum(broke)))
    strata = [stats.Pairs(*each) for each in zip(counts, fixed, broke, strict=True)]
    items, up, down, _ = stats.effective(strata, weights)
    return Single(baseline.n, items, up, down)


@dataclass(frozen=True)
class Finding:
    """What the test of one benchmark came to.

    `p` is that of what has to be proven, and `adjusted` the one that decides: Holm's over all
    benchmarks for a proof of inferiority; for non-inferiority p itself, as all benchmarks must
    prove it (an intersection-union test, Berger 1982, Technometrics 24:295). `level` is that of
    the first step of the test.
    """

    evidence: Evidence
    margin: float
    p: float
    adjusted: float
    failed: bool
    mode: Mode
    level: float

    @property
    def detectable(self) -> float | None:
        """The smallest true drop that fails in four cases of five, None where none does."""
        return detectable(self.evidence, self.margin, self.mode, self.level)


def decide(
    cases: Sequence[tuple[Evidence, float]], mode: Mode = "inferiority", alpha: float = ALPHA
) -> list[Finding]:
    """The verdict on every benchmark, each with its margin, so that all together hold at `alpha`.

    With `inferiority` the chance that any benchmark fails that fell by no more than its margin is
    `alpha` at most; with `non-inferiority` that all pass though one fell by its margin or more.
    """
    if mode == "inferiority":
        ps = [one.fell(margin) for one, margin in cases]
        adjusted = stats.holm(ps)
        failed = [p <= alpha for p in adjusted]
    else:
        ps = [one.held(margin) for one, margin in cases]
        adjusted, failed = ps, [p > alpha for p in ps]
    level = step(alpha, mode, len(cases))
    return [
        Finding(one, margin, p, q, bad, mode, level)
        for (one, margin), p, q, bad in zip(cases, ps, adjusted, failed, strict=True)
    ]


def step(alpha: float, mode: Mode, benchmarks: int) -> float:
    """The level at which the first benchmark of so many is tested."""
    return alpha / benchmarks if mode == "inferiority" else alpha


def fails(one: Evidence, drop: float, margin: float, mode: Mode, level: float) -> float:
    """How likely a benchmark fails that truly fell by `drop`, at the discordance seen.

    A normal approximation, as in Connor 1987 (Biometrics 43:207); `level` is that of its test.
    """
    ask = one.quantile(level) * one.error(margin)
    beyond = drop - margin if mode == "inferiority" else margin - drop
    error = one.error(drop)
    proven = float(ndtr((beyond - ask) / error)) if error else float(beyond > ask)
    return proven if mode == "inferiority" else 1 - proven


def detectable(one: Evidence, margin: float, mode: Mode, level: float) -> float | None:
    """The smallest true drop that fails in four cases of five; below 0: a gain that fails."""
    low, high = -1.0, 1.0
    if fails(one, high, margin, mode, level) < power.POWER:
        return None
    for _ in range(50):
        middle = (low + high) / 2
        if fails(one, middle, margin, mode, level) < power.POWER:
            low = middle
        else:
            high = middle
    return high


def fails_any(
    cases: Sequence[tuple[Evidence, float]], drop: float, mode: Mode, alpha: float
) -> float:
    """How likely any benchmark fails if all truly fell by `drop`, as they are independent.

    By Holm's rule one of them fails just when the first step rejects, so this is no bound.
    """
    level = step(alpha, mode, len(cases))
    return 1 - math.prod(1 - fails(one, drop, margin, mode, level) for one, margin in cases)
