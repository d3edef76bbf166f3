"""Differences of two runs' averages on the same items: intervals, tests, resamples, power."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ceval_suite import bootstrap, methods, metrics, power, stats
from ceval_suite.bootstrap import Stratum
from ceval_suite.schema import Estimate, Record
from ceval_suite.specs import Task

Pair = tuple[Record, Record]


@dataclass(frozen=True)
class Difference:
    """One average of both sides, and what is known of the difference (second less first).

    `p` decides: it is of the test whose interval `change` has. `items` is how many independent
    items without strata would know as much, and `discordance` the share of those that only one
    side has right; None where answers are clustered or graded. `detectable` is the smallest
    difference that so many items find in four cases of five; None where none would be.
    """

    first: Estimate
    second: Estimate
    change: Estimate
    p: float
    items: float | None
    discordance: float | None
    detectable: float | None


@dataclass(frozen=True)
class Part:
    """The difference in one subject or category; `adjusted` is Holm's p over all of the kind."""

    name: str
    fixed: int
    broke: int
    found: Difference
    adjusted: float


def right(record: Record) -> float:
    """1 for a right answer, else 0."""
    return float(bool(record.correct))


def alone(judged: Sequence[Pair]) -> bool:
    """Whether no item shares a passage, or is a sub-question, with another."""
    return len({methods.cluster(a) for a, _ in judged}) == len(judged)


def counts(judged: Sequence[Pair]) -> tuple[int, int]:
    """How many items are fixed, and how many broke."""
    fixed = sum(not a.correct and bool(b.correct) for a, b in judged)
    return fixed, sum(bool(a.correct) and not b.correct for a, b in judged)


def rules(task: Task) -> list[str]:
    """The averages to give, the official one first."""
    return list(dict.fromkeys((task.average, "micro", "macro")))


def averages(
    task: Task, judged: Sequence[Pair], sizes: Mapping[str, int] | None = None
) -> dict[str, Difference]:
    """Every average over the items that both have, by its name, the official one first.

    Of a subset, `sizes` are the records that subjects have in the whole; averages are the whole's.
    """
    sides = [metrics.parts_of(pair[k] for pair in judged) for k in (0, 1)]
    return {metrics.HEADLINES[rule]: _of(rule, task, judged, sides, sizes) for rule in rules(task)}


def resampled(
    task: Task, judged: Sequence[Pair], sizes: Mapping[str, int] | None = None
) -> dict[str, tuple[Estimate, float]]:
    """The paired bootstrap of every average's difference, stratified and clustered; and its p."""
    strata = _strata(task, judged)
    weights = {rule: _weights(rule, task, strata, sizes) for rule in rules(task)}
    out: dict[str, tuple[Estimate, float]] = {}
    for value, chosen in ((methods.score, ["points"]), (right, ["micro", "macro"])):
        wanted = {rule: weights[rule] for rule in chosen if rule in weights}
        if wanted:
            changes = [
                Stratum(
                    [value(b) - value(a) for a, b in some], [methods.cluster(a) for a, _ in some]
                )
                for some in strata.values()
            ]
            out |= bootstrap.averages(changes, wanted)
    return {metrics.HEADLINES[rule]: out[rule] for rule in weights}


def _stratum(pairs: Sequence[Pair], value: Callable[[Record], float]) -> Stratum:
    return Stratum([value(b) - value(a) for a, b in pairs], [methods.cluster(a) for a, _ in pairs])


def by_subject(task: Task, judged: Sequence[Pair]) -> list[Part]:
    """Each subject's own difference; of points where the benchmark counts points."""
    rule = "points" if task.average == "points" else "micro"
    return _parts(task, {s: (rule, some) for s, some in _strata(task, judged).items()})


def by_category(task: Task, judged: Sequence[Pair]) -> list[Part]:
    """Each category's difference by the official average, over the subjects that are there."""
    strata = _strata(task, judged)
    found = {
        name: (task.average, [pair for s in members for pair in strata.get(s, ())])
        for name, members in task.categories.items()
    }
    return _parts(task, {name: some for name, some in found.items() if some[1]})


def _parts(task: Task, chosen: Mapping[str, tuple[str, Sequence[Pair]]]) -> list[Part]:
    found: list[Difference] = []
    for rule, judged in chosen.values():
        sides = [metrics.parts_of(pair[k] for pair in judged) for k in (0, 1)]
        found.append(_of(rule, task, judged, sides))
    adjusted = stats.holm([one.p for one in found])
    return [
        Part(name, *counts(judged), one, p)
        for (name, (_, judged)), one, p in zip(chosen.items(), found, adjusted, strict=True)
    ]


def _strata(task: Task, judged: Sequence[Pair]) -> dict[str, list[Pair]]:
    """Pairs by subject, in the order of the task, so that equal records give equal bits."""
    by_subject: defaultdict[str, list[Pair]] = defaultdict(list)
    for pair in judged:
        by_subject[pair[0].subject].append(pair)
    return {s: by_subject[s] for s in task.subjects if s in by_subject}


def _weights(
    rule: str,
    task: Task,
    strata: Mapping[str, Sequence[Pair]],
    sizes: Mapping[str, int] | None = None,
) -> list[float]:
    counts = {s: sizes[s] if sizes else len(some) for s, some in strata.items()}
    return metrics.weights(rule, task, counts)


def _of(
    rule: str,
    task: Task,
    judged: Sequence[Pair],
    sides: Sequence[Mapping[str, metrics.Part]],
    sizes: Mapping[str, int] | None = None,
) -> Difference:
    strata = _strata(task, judged)
    weights = _weights(rule, task, strata, sizes)
    one, two = (
        metrics.average(rule, {s: parts[s] for s in strata}, task, sizes) for parts in sides
    )
    value = methods.score if rule == "points" else right
    if alone(judged) and all(value(r) in (0, 1) for pair in judged for r in pair):
        return _plain("" if sizes else rule, strata, weights, one, two)
    change, p = _clustered(list(strata.values()), weights, value)
    sure = power.distance() * change.stderr
    return Difference(one, two, change, p, None, None, sure if 0 < sure <= 1 else None)


def _plain(
    rule: str,
    strata: Mapping[str, Sequence[Pair]],
    weights: Sequence[float],
    one: Estimate,
    two: Estimate,
) -> Difference:
    pairs = [stats.Pairs(len(some), *counts(some)) for some in strata.values()]
    if rule == "micro":  # over items, whatever their subjects
        fixed, broke = sum(s.fixed for s in pairs), sum(s.broke for s in pairs)
        change = stats.difference(sum(s.n for s in pairs), fixed, broke)
        n, p = float(change.n), stats.score_p(fixed, broke)
    else:
        change = stats.weighted_difference(pairs, weights)
        n, fixed, broke, _ = stats.effective(pairs, weights)
        p = stats.weighted_p(pairs, weights)
    share = min(1.0, (fixed + broke) / n)
    return Difference(one, two, change, p, n, share, power.detectable(n, share))


def clustered(parts: Sequence[Stratum], weights: Sequence[float]) -> tuple[Estimate, int]:
    """The weighted mean of changes that belong together, and Student's number of clusters.

    Over the clusters of one stratum it is Student's; of several, normal with their variances: 0.
    """
    changes = [stats.mean_difference(one.values, one.clusters) for one in parts]
    if len(changes) == 1:
        return changes[0], len(set(parts[0].clusters))
    return stats.weighted(changes, weights, least=-1.0), 0


def _clustered(
    strata: Sequence[Sequence[Pair]], weights: Sequence[float], value: Callable[[Record], float]
) -> tuple[Estimate, float]:
    change, groups = clustered([_stratum(some, value) for some in strata], weights)
    return change, stats.student_p(change, groups)


def needed(found: Difference, difference: float) -> int | None:
    """How many such items it takes to find a difference in four cases of five.

    None where it is larger than the discordance that was seen, or nothing differed.
    """
    if found.discordance is not None:
        return power.items(difference, found.discordance) if found.discordance else None
    size = (power.distance() * found.change.stderr) ** 2
    return math.ceil(found.change.n * size / difference**2) if size else None
