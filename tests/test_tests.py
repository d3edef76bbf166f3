"""Tests and intervals equal those of statsmodels; resamples and power are what they say."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats import contingency_tables, multitest, proportion

from ceval_suite import bootstrap, power, stats
from ceval_suite.bootstrap import Stratum


@given(st.lists(st.floats(0, 1), min_size=1, max_size=60))
def test_holm_equals_statsmodels(ps: list[float]) -> None:
    expected = multitest.multipletests(ps, method="holm")[1]
    assert stats.holm(ps) == pytest.approx(expected.tolist(), rel=1e-12, abs=1e-300)


def test_holm_of_nothing_is_nothing() -> None:
    assert stats.holm([]) == []


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_exact_and_score_equal_statsmodels(fixed: int, broke: int) -> None:
    table = [[7, broke], [fixed, 11]]
    exact = contingency_tables.mcnemar(table, exact=True).pvalue
    assert stats.mcnemar(fixed, broke) == pytest.approx(float(exact), rel=1e-9)
    if fixed + broke:
        score = contingency_tables.mcnemar(table, exact=False, correction=False).pvalue
        assert stats.score_p(fixed, broke) == pytest.approx(float(score), rel=1e-9)


@given(st.integers(1, 20000), st.data())
def test_intervals_of_shares_equal_statsmodels(n: int, data: st.DataObject) -> None:
    k = data.draw(st.integers(0, n))
    for way, method in ((stats.wilson, "wilson"), (stats.clopper_pearson, "beta")):
        low, high = proportion.proportion_confint(k, n, method=method)
        found = way(k, n)
        assert found.low == pytest.approx(max(0.0, float(low)), abs=1e-10)
        assert found.high == pytest.approx(min(1.0, float(high)), abs=1e-10)


@given(st.integers(4, 3000), st.data())
def test_p_is_below_5_percent_where_the_interval_leaves_0_out(n: int, data: st.DataObject) -> None:
    fixed = data.draw(st.integers(0, n))
    broke = data.draw(st.integers(0, n - fixed))
    found = stats.difference(n, fixed, broke)
    p = stats.score_p(fixed, broke)
    if abs(p - 0.05) > 1e-6:
        assert (p < 0.05) == (not found.low <= 0 <= found.high)


# resamples


def strata(seed: int, sizes: list[int]) -> list[Stratum]:
    rng = np.random.default_rng(seed)
    return [
        Stratum(rng.choice([-1.0, 0.0, 1.0], n).tolist(), [str(k // 3) for k in range(n)])
        for n in sizes
    ]


def test_resampled_errors_are_those_of_stratified_clustered_means() -> None:
    some = strata(1, [30, 60, 90, 12])
    weights = {"macro": [1.0] * 4, "micro": [30.0, 60.0, 90.0, 12.0]}
    found = bootstrap.averages(some, weights, seed=2, draws=20_000)
    for name, of in weights.items():
        share = np.array(of) / sum(of)
        means, variances = [], []
        for one in some:
            by_cluster = np.array(one.values).reshape(-1, 3).mean(1)
            means.append(by_cluster.mean())
            variances.append(by_cluster.var(ddof=1) / len(by_cluster))
        estimate, p = found[name]
        assert estimate.value == pytest.approx(share @ means)
        assert estimate.stderr == pytest.approx(np.sqrt(share**2 @ variances), rel=0.03)
        assert estimate.low < estimate.value < estimate.high
        assert 0 < p <= 1


def test_resamples_are_repeatable_and_differ_by_seed() -> None:
    some = strata(3, [12, 24])
    one = bootstrap.averages(some, {"macro": [1, 1]}, seed=4)
    assert one == bootstrap.averages(some, {"macro": [1, 1]}, seed=4)
    assert one != bootstrap.averages(some, {"macro": [1, 1]}, seed=5)


def test_a_stratum_of_one_cluster_still_varies() -> None:
    some = [Stratum([1.0], ["a"]), Stratum([0.0, 1.0, -1.0, 0.0], list("abcd"))]
    assert bootstrap.replicates(some)[:, 0].std() > 0.3


def test_resamples_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="nothing"):
        bootstrap.averages([], {"macro": []})
    with pytest.raises(ValueError, match="no items"):
        bootstrap.replicates([Stratum([], [])])
    with pytest.raises(ValueError, match="nothing"):
        bootstrap.averages(strata(1, [3]), {"macro": [0.0]})


# power


@settings(max_examples=50)
@given(st.integers(30, 50_000), st.floats(0.02, 1.0))
def test_items_needed_and_detectable_difference_are_each_others_inverse(
    n: int, discordance: float
) -> None:
    at = power.detectable(n, discordance)
    if at is not None:
        needed = power.items(at, discordance)
        assert needed is not None
        assert abs(needed - n) <= 1


def test_nothing_is_detectable_in_a_few_items_or_where_nothing_differs() -> None:
    assert power.detectable(2, 0.3) is None
    assert power.detectable(20, 0.05) is None
    assert power.detectable(1000, 0.0) is None
    assert power.items(0.1, 0.05) is None
    with pytest.raises(ValueError, match="of 0"):
        power.items(0.0, 0.05)
    with pytest.raises(ValueError, match="no items"):
        power.detectable(0, 0.05)
    with pytest.raises(ValueError, match="shares"):
        power.detectable(10, 1.5)


def test_more_power_and_a_stricter_level_need_more_items() -> None:
    plain = power.items(0.02, 0.1)
    assert plain is not None
    for more in (power.items(0.02, 0.1, power=0.9), power.items(0.02, 0.1, alpha=0.01)):
        assert more is not None
        assert more > plain


def test_a_mean_of_values_of_any_size_has_students_interval() -> None:
    from scipy.stats import ttest_1samp

    values = [0.1, 2.5, 3.0, 0.4, 1.0]
    found = stats.mean(values, list("abcde"))
    expected = ttest_1samp(values, 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert stats.mean([1.0, 2.0], ["a", "a"]).high == float("inf")
