"""Tests of all pairs equal tests of each pair; rank intervals hold the true ranks."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import binomtest, kendalltau, norm, spearmanr

from ceval_suite import ranking
from ceval_suite.outcomes import Outcomes
from ceval_suite.ranking import Pairs


def run(
    right: np.ndarray,
    subjects: dict[str, int] | None = None,
    cluster: np.ndarray | None = None,
) -> Outcomes:
    values, codes = np.unique(right, return_inverse=True)
    pairs = np.stack([(values == 1).astype(float), values], 1)
    return Outcomes("x", subjects or {"s": len(right)}, codes.astype("u1"), pairs, cluster, {})


def draws(seed: int, models: int, n: int, spread: float = 0.5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    hard = rng.normal(size=n)
    skill = rng.normal(scale=spread, size=models)
    return [(rng.random(n) < 1 / (1 + np.exp(hard - s))).astype(float) for s in skill]


# pairs


def test_micro_is_mcnemars_exact_test_for_every_pair() -> None:
    answers = draws(1, 8, 400)
    found = ranking.pairs([run(x) for x in answers], "micro", {})
    for i, j in itertools.permutations(range(8), 2):
        a, b = answers[i], answers[j]
        fixed, broke = int(((a == 1) & (b == 0)).sum()), int(((a == 0) & (b == 1)).sum())
        assert found.p[i, j] == pytest.approx(binomtest(fixed, fixed + broke).pvalue, rel=1e-9)
        assert found.difference[i, j] == pytest.approx(a.mean() - b.mean(), abs=1e-6)
        assert found.units[i, j] == fixed + broke


def test_beyond_a_thousand_discordant_items_the_normal_is_close_to_exact() -> None:
    answers = draws(2, 6, 9000, 0.15)
    found = ranking.pairs([run(x) for x in answers], "micro", {})
    for i, j in itertools.combinations(range(6), 2):
        fixed = int(((answers[i] == 1) & (answers[j] == 0)).sum())
        broke = int(((answers[i] == 0) & (answers[j] == 1)).sum())
        assert fixed + broke > ranking.EXACT
        exact = binomtest(fixed, fixed + broke).pvalue
        if exact > 1e-6:
            assert found.p[i, j] == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize("rule", ["macro", "points"])
@pytest.mark.parametrize("clustered", [False, True])
def test_every_pair_equals_its_own_sum_over_units(rule: str, clustered: bool) -> None:
    rng = np.random.default_rng(3)
    subjects = {"a": 40, "b": 300, "c": 160}
    points = {"a": 6.0, "b": 1.5, "c": 4.0}
    answers = [rng.choice([0.0, 1.0, 0.5], size=500, p=[0.4, 0.5, 0.1]) for _ in range(5)]
    cluster = np.sort(rng.integers(0, 120, 500)) if clustered else None
    found = ranking.pairs([run(x, subjects, cluster) for x in answers], rule, points)
    which = np.repeat(list(subjects), list(subjects.values()))
    total = sum(points[s] * n for s, n in subjects.items())
    each = [points[s] / total if rule == "points" else 1 / (3 * subjects[s]) for s in which]
    for i, j in itertools.permutations(range(5), 2):
        a, b = (x if rule == "points" else (x == 1) for x in (answers[i], answers[j]))
        change = (a.astype(float) - b.astype(float)) * np.array(each)
        groups = cluster if cluster is not None else np.arange(500)
        sums = np.array([change[groups == g].sum() for g in np.unique(groups)])
        assert found.difference[i, j] == pytest.approx(sums.sum(), abs=1e-6)
        assert found.variance[i, j] == pytest.approx((sums**2).sum(), rel=1e-3)
        z = abs(sums.sum()) / np.sqrt((sums**2).sum())
        assert found.p[i, j] == pytest.approx(2 * norm.sf(z), rel=0.02)


def test_a_run_beside_its_copy_differs_in_nothing() -> None:
    (one,) = draws(4, 1, 999)
    subjects = {"a": 333, "b": 666}
    for rule in ("micro", "macro", "points"):
        found = ranking.pairs([run(one, subjects), run(one.copy(), subjects)], rule, {})
        assert found.p.tolist() == [[1, 1], [1, 1]]
        assert found.difference.tolist() == [[0, 0], [0, 0]]


def test_few_items_are_never_sure() -> None:
    ones, zeros = np.ones(4), np.zeros(4)
    for rule, subjects in (("micro", {"s": 4}), ("macro", {"a": 1, "b": 3})):
        found = ranking.pairs([run(ones, subjects), run(zeros, subjects)], rule, {})
        assert found.p[0, 1] == pytest.approx(0.125)  # 2 · 2⁻⁴


def test_runs_of_other_items_are_refused() -> None:
    one = run(np.ones(4))
    other = Outcomes("y", {"s": 4}, one.codes, one.values, None, {})
    with pytest.raises(ValueError, match="the same items"):
        ranking.pairs([one, other], "micro", {})


@pytest.mark.parametrize("rule", ["micro", "macro"])
def test_the_test_of_a_pair_errs_in_at_most_5_percent(rule: str) -> None:
    rng = np.random.default_rng(5)
    subjects = {"a": 30, "b": 100, "c": 170}
    hard = rng.uniform(0.2, 0.9, 300)
    times = 2000
    wrong = 0
    for _ in range(times):
        two = [run((rng.random(300) < hard).astype(float), subjects) for _ in range(2)]
        wrong += bool(ranking.pairs(two, rule, {}).p[0, 1] <= 0.05)
    assert 0.02 * times < wrong < 0.06 * times


# ranks


def by_hand(p: np.ndarray, difference: np.ndarray) -> list[tuple[int, int]]:
    """Holm's rule, one model and one comparison after the other."""
    out = []
    for i in range(len(p)):
        others = sorted((p[i, j], j) for j in range(len(p)) if j != i)
        better = worse = 0
        for step, (value, j) in enumerate(others):
            if value > 0.05 / (len(others) - step):
                break
            better += difference[i, j] < 0
            worse += difference[i, j] > 0
        out.append((1 + better, len(p) - worse))
    return out


def test_ranks_are_holms_rule_within_each_models_comparisons() -> None:
    for seed in range(5):
        found = ranking.pairs([run(x) for x in draws(seed, 12, 300)], "micro", {})
        ranks = ranking.ranks(found)
        assert list(zip(ranks.low, ranks.high, strict=True)) == by_hand(found.p, found.difference)


def test_holm_treats_equal_ps_alike() -> None:
    p = np.array([[1, 0.025, 0.025], [0.025, 1, 0.5], [0.025, 0.5, 1.0]])
    assert ranking.holm(p).tolist() == [
        [False, True, True],
        [True, False, False],
        [True, False, False],
    ]


@pytest.mark.parametrize("spread", [0.0, 0.15, 0.6])
def test_rank_intervals_hold_the_true_rank_in_95_percent(spread: float) -> None:
    rng = np.random.default_rng(6)
    models, n, times = 8, 500, 400
    true = np.clip(0.6 + spread * np.linspace(-0.5, 0.5, models), 0.05, 0.95)
    held = np.zeros(models)
    for _ in range(times):
        shared = rng.random(n)  # what is hard is hard for all
        answers = [(0.5 * shared + 0.5 * rng.random(n) < _quantile(t)).astype(float) for t in true]
        ranks = ranking.ranks(ranking.pairs([run(x) for x in answers], "micro", {}))
        for i, t in enumerate(true):
            low = 1 + int((true > t + 1e-12).sum())
            high = models - int((true < t - 1e-12).sum())
            held[i] += ranks.low[i] <= low and high <= ranks.high[i]
    assert held.min() / times >= 0.935


def _quantile(t: float) -> float:
    """Where a sum of two halves of uniforms lies below with probability t."""
    return np.sqrt(t / 2) if t <= 0.5 else 1 - np.sqrt((1 - t) / 2)


def test_a_clear_order_has_single_ranks_and_a_sole_best() -> None:
    n = 1000
    answers = [(np.arange(n) < k).astype(float) for k in (900, 700, 500)]
    ranks = ranking.ranks(ranking.pairs([run(x) for x in answers], "micro", {}))
    assert (ranks.low, ranks.high) == ([1, 2, 3], [1, 2, 3])
    assert (ranks.best, ranks.sole, ranks.tied) == (0, True, [False, False, False])


def test_a_near_second_is_tied_with_the_best() -> None:
    n = 1000
    answers = [(np.arange(n) < k).astype(float) for k in (500, 900, 898)]
    ranks = ranking.ranks(ranking.pairs([run(x) for x in answers], "micro", {}))
    assert (ranks.best, ranks.sole, ranks.tied) == (1, False, [False, False, True])
    assert (ranks.low, ranks.high) == ([3, 1, 1], [3, 2, 2])


def test_one_model_alone_is_not_the_best_of_any() -> None:
    ranks = ranking.ranks(ranking.pairs([run(np.ones(5))], "micro", {}))
    assert (ranks.low, ranks.high, ranks.sole, ranks.tied) == ([1], [1], False, [False])


def test_the_mean_of_columns_adds_their_differences_and_variances() -> None:
    parts = [ranking.pairs([run(x) for x in draws(seed, 4, 300)], "micro", {}) for seed in (7, 8)]
    found = ranking.joined(parts)
    for i, j in itertools.permutations(range(4), 2):
        difference = (parts[0].difference[i, j] + parts[1].difference[i, j]) / 2
        variance = (parts[0].variance[i, j] + parts[1].variance[i, j]) / 4
        assert found.difference[i, j] == pytest.approx(difference)
        z = abs(difference) / np.sqrt(variance)
        assert found.p[i, j] == pytest.approx(2 * norm.sf(z))


def test_some_of_the_pairs_keep_their_order() -> None:
    found = ranking.pairs([run(x) for x in draws(9, 4, 100)], "micro", {})
    some = ranking.of(found, [2, 0])
    assert isinstance(some, Pairs)
    assert some.p[0, 1] == found.p[2, 0]


# columns


def test_agreement_of_columns_is_scipys() -> None:
    first = {"a": 0.1, "b": 0.4, "c": 0.4, "d": 0.9, "alone": 1.0}
    second = {"d": 0.7, "c": 0.2, "b": 0.3, "a": 0.1}
    found = ranking.agreement(first, second)
    assert found is not None
    x, y = ([of[m] for m in "abcd"] for of in (first, second))
    assert found.n == 4
    assert found.kendall == pytest.approx(kendalltau(x, y).statistic)
    assert found.spearman == pytest.approx(spearmanr(x, y).statistic)


def test_two_models_say_nothing_about_agreement() -> None:
    assert ranking.agreement({"a": 1.0, "b": 0.5}, {"a": 1.0, "b": 0.5}) is None
    assert ranking.agreement(dict.fromkeys("abc", 1.0), {"a": 1.0, "b": 0.5, "c": 0.1}) is None
