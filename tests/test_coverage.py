"""95 % intervals cover in 93.5 to 96.5 % of 2,000 draws, and tests at 5 % reject in 4 to 6 %.

Set-ups are those of real benchmarks: the subjects of C-Eval's val split and of MMLU with their
published sizes, passages with four to six questions. Seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from ceval_suite import bootstrap, power, stats
from ceval_suite.bootstrap import Stratum
from ceval_suite.catalog import load_task
from ceval_suite.schema import Estimate
from ceval_suite.stats import Pairs

DRAWS = 2000


def sizes_of(task: str, split: str) -> list[int]:
    return [subject.counts[split] for subject in load_task(task).subjects.values()]


SIZES = {"ceval": sizes_of("ceval", "val"), "mmlu": sizes_of("mmlu", "test")}


def covers(found: Estimate, truth: float) -> bool:
    return found.low <= truth <= found.high


def covered(intervals: Sequence[Estimate], truth: float) -> float:
    assert len(intervals) == DRAWS
    return sum(covers(found, truth) for found in intervals) / DRAWS


wilson = cache(stats.wilson)
clopper_pearson = cache(stats.clopper_pearson)
difference = cache(stats.difference)


# one model


@pytest.mark.parametrize("truth", [0.25, 0.4, 0.7, 0.9])
@pytest.mark.parametrize("n", [200, 1346, 14042])
def test_a_share_of_independent_items(n: int, truth: float) -> None:
    right = np.random.default_rng([n, 1]).binomial(n, truth, DRAWS).tolist()
    assert 0.935 <= covered([wilson(k, n) for k in right], truth) <= 0.965
    assert covered([clopper_pearson(k, n) for k in right], truth) >= 0.945


@pytest.mark.parametrize("n", [12, 26, 55])
def test_shares_of_a_few_items(n: int) -> None:
    # with few items coverage jumps from one truth to the next: here it is computed, not drawn
    truths = np.linspace(0.2, 0.95, 151)
    chances = binom.pmf(np.arange(n + 1), n, truths[:, None])

    def coverage(way: Callable[[int, int], Estimate]) -> Any:
        ends = [way(k, n) for k in range(n + 1)]
        inside = np.array([[covers(found, truth) for found in ends] for truth in truths])
        return (chances * inside).sum(1)

    assert 0.935 <= coverage(stats.wilson).mean() <= 0.965
    # Clopper and Pearson's is careful by construction: never less than 95 %, whatever the truth
    assert coverage(stats.clopper_pearson).min() >= 0.95
    assert coverage(stats.clopper_pearson).mean() > coverage(stats.wilson).mean()


@pytest.mark.parametrize(("a", "b"), [(5, 15), (10, 10), (14, 6), (18, 2)])
@pytest.mark.parametrize("task", SIZES)
def test_a_macro_average_over_real_subjects(task: str, a: float, b: float) -> None:
    sizes, rng = SIZES[task], np.random.default_rng([int(a), 2])
    truths = rng.beta(a, b, len(sizes))
    draws = rng.binomial(sizes, truths, size=(DRAWS, len(sizes))).tolist()
    found = [
        stats.weighted([wilson(k, n) for k, n in zip(row, sizes, strict=True)], [1.0] * len(sizes))
        for row in draws
    ]
    assert 0.935 <= covered(found, float(truths.mean())) <= 0.965


class Passages:
    """Passages with four to six questions: what a model knows differs between them."""

    def __init__(self, groups: int, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        sizes = self.rng.integers(4, 7, groups)
        self.groups = groups
        self.of = np.repeat(np.arange(groups), sizes)
        self.names = [str(k) for k in self.of]

    def rates(self, truth: float, spread: float) -> Any:
        """A share of right answers for each question, its passage's own."""
        return self.rng.beta(truth * spread, (1 - truth) * spread, self.groups)[self.of]

    def right(self, rates: Any) -> Any:
        return (self.rng.random(len(self.of)) < rates).astype(float)

    def pair(self, truth: float, spread: float, better: float) -> tuple[Any, Any]:
        """Two models that are alike on most questions, and gain or lose some whole passages."""
        rates = self.rates(truth, spread)
        first = self.right(rates)
        second = np.where(self.rng.random(len(self.of)) < 0.3, self.right(rates), first)
        moved = self.rng.random(self.groups) < 0.15
        up = self.rng.random(self.groups) < 0.5 + better
        return first, np.where(moved[self.of], up[self.of], second)


@pytest.mark.parametrize(
    ("groups", "truth", "spread"), [(45, 0.4, 3.0), (120, 0.25, 6.0), (45, 0.9, 6.0)]
)
def test_a_share_of_items_that_share_passages(groups: int, truth: float, spread: float) -> None:
    passages = Passages(groups, seed=3)
    found = [
        stats.share(passages.right(passages.rates(truth, spread)).tolist(), passages.names)
        for _ in range(DRAWS)
    ]
    assert 0.935 <= covered(found, truth) <= 0.965


# two models on the same items


@pytest.mark.parametrize(
    ("n", "fixed", "broke"),
    [
        (100, 0.08, 0.05),
        (100, 0.15, 0.15),
        (1346, 0.05, 0.04),
        (1346, 0.01, 0.01),
        (14042, 0.08, 0.05),
        (14042, 0.02, 0.015),
    ],
)
def test_a_paired_difference_of_independent_items(n: int, fixed: float, broke: float) -> None:
    draws = np.random.default_rng([n, 4]).multinomial(
        n, [fixed, broke, 1 - fixed - broke], size=DRAWS
    )
    found = [difference(n, f, b) for f, b, _ in draws.tolist()]
    assert 0.935 <= covered(found, fixed - broke) <= 0.965


def paired_strata(
    task: str, share: float, shift: float, seed: int
) -> tuple[list[list[Pairs]], float]:
    """Draws of the pairs in each subject, where subjects differ; and the true macro difference."""
    sizes, rng = SIZES[task], np.random.default_rng([seed, 5])
    discordant = rng.beta(4, 4 / share - 4, len(sizes))
    fixed = discordant * (0.5 + shift / share / 2)
    broke = discordant - fixed
    chances = np.stack([fixed, broke, 1 - discordant], 1)
    draws = rng.multinomial(sizes, chances, size=(DRAWS, len(sizes))).tolist()
    rows = [[Pairs(n, f, b) for n, (f, b, _) in zip(sizes, row, strict=True)] for row in draws]
    return rows, float((fixed - broke).mean())


@pytest.mark.parametrize(
    ("task", "share", "shift"),
    [("ceval", 0.05, 0.0), ("ceval", 0.1, 0.03), ("mmlu", 0.3, 0.02), ("mmlu", 0.02, 0.0)],
)
def test_a_paired_macro_difference(task: str, share: float, shift: float) -> None:
    rows, truth = paired_strata(task, share, shift, seed=6)
    found = [stats.weighted_difference(row, [1.0] * len(row)) for row in rows]
    assert 0.935 <= covered(found, truth) <= 0.965
    if not shift:
        small = [stats.weighted_p(row, [1.0] * len(row)) < 0.05 for row in rows]
        assert 0.04 <= np.mean(small) <= 0.06


@pytest.mark.parametrize(("groups", "truth", "spread"), [(45, 0.4, 3.0), (90, 0.7, 6.0)])
def test_a_paired_difference_of_items_that_share_passages(
    groups: int, truth: float, spread: float
) -> None:
    passages = Passages(groups, seed=7)
    found: list[Estimate] = []
    boots: list[Estimate] = []
    small = np.zeros(2)
    middle = 0.5 - truth  # a passage that moves goes up as often as down
    for k in range(DRAWS):
        first, second = passages.pair(truth, spread, better=-middle)
        changes = (second - first).tolist()
        found.append(stats.mean_difference(changes, passages.names))
        stratum = Stratum(changes, passages.names)
        boot, p = bootstrap.averages([stratum], {"": [1.0]}, seed=k, draws=400)[""]
        boots.append(boot)
        small += [stats.student_p(found[-1], groups) < 0.05, p < 0.05]
    assert 0.935 <= covered(found, 0.0) <= 0.965
    assert 0.935 <= covered(boots, 0.0) <= 0.965
    assert 0.04 <= small[0] / DRAWS <= 0.06


@pytest.mark.parametrize(("share", "shift"), [(0.1, 0.0), (0.2, 0.05)])
def test_the_paired_bootstrap_of_every_average(share: float, shift: float) -> None:
    sizes = [18, 30, 46, 64]
    weights = {
        "micro": [float(n) for n in sizes],
        "macro": [1.0] * len(sizes),
        "points": [n * p for n, p in zip(sizes, [6, 2, 3, 1.5], strict=True)],
    }
    rng = np.random.default_rng([int(100 * share), 8])
    discordant = rng.beta(4, 4 / share - 4, len(sizes))
    fixed = discordant * (0.5 + shift / share / 2)
    chances = np.stack([fixed, discordant - fixed, 1 - discordant], 1)
    names = [[str(k) for k in range(n)] for n in sizes]
    found: dict[str, list[Estimate]] = {rule: [] for rule in weights}
    small = dict.fromkeys(weights, 0)
    for k in range(DRAWS):
        rows = rng.multinomial(sizes, chances).tolist()
        strata = [
            Stratum([1.0] * f + [-1.0] * b + [0.0] * rest, name)
            for (f, b, rest), name in zip(rows, names, strict=True)
        ]
        for rule, (one, p) in bootstrap.averages(strata, weights, seed=k, draws=400).items():
            found[rule].append(one)
            small[rule] += p < 0.05
    for rule, of in weights.items():
        truth = float(np.average(2 * fixed - discordant, weights=of))
        assert 0.935 <= covered(found[rule], truth) <= 0.965, rule
        if not shift:
            assert 0.035 <= small[rule] / DRAWS <= 0.065  # p of 400 resamples is coarse


# the decision


@pytest.mark.parametrize("share", [0.05, 0.1, 0.3])
@pytest.mark.parametrize("n", [100, 1346, 14042])
def test_the_score_test_rejects_equal_models_in_5_percent_of_draws(n: int, share: float) -> None:
    rng = np.random.default_rng([n, 9])
    draws = rng.multinomial(n, [share / 2, share / 2, 1 - share], size=4 * DRAWS)
    p = cache(stats.score_p)
    exact = cache(stats.mcnemar)  # never more often than it says
    small = [p(f, b) < 0.05 for f, b, _ in draws.tolist()]
    assert 0.04 <= np.mean(small) <= 0.06
    assert np.mean([exact(f, b) < 0.05 for f, b, _ in draws.tolist()]) <= np.mean(small)


@pytest.mark.parametrize("share", [0.12, 0.3])
@pytest.mark.parametrize("n", [200, 1346, 14042])
def test_a_detectable_difference_is_found_four_times_in_five(n: int, share: float) -> None:
    at = power.detectable(n, share)
    assert at is not None
    rng = np.random.default_rng([n, 10])
    chances = [(share + at) / 2, (share - at) / 2, 1 - share]
    draws = rng.multinomial(n, chances, size=2 * DRAWS).tolist()
    p = cache(stats.score_p)
    # with two dozen discordant items the normal sample size is a little too large
    most = 0.83 if n * share > 50 else 0.87
    assert 0.77 <= np.mean([p(f, b) < 0.05 for f, b, _ in draws]) <= most
