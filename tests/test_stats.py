"""Intervals are what the textbooks say, and cover what they promise."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ceval_suite.schema import Estimate
from ceval_suite.stats import Z, mean_difference, normal_p, share, weighted, wilson


@given(st.integers(1, 3000), st.data())
def test_wilson_equals_scipys(n: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, n))
    found = wilson(right, n)
    expected = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert found.value == right / n
    assert found.n == n
    assert found.low == pytest.approx(expected.low, abs=1e-12)
    assert found.high == pytest.approx(expected.high, abs=1e-12)
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.stderr == pytest.approx(math.sqrt(right / n * (1 - right / n) / n))


def test_wilson_by_hand() -> None:
    # 8 of 10, z = 1.96: the worked example of many textbooks, 0.490 to 0.943
    found = wilson(8, 10)
    assert (round(found.low, 3), round(found.high, 3)) == (0.490, 0.943)


@pytest.mark.parametrize("n", [0, -1])
def test_a_share_of_no_items_is_refused(n: int) -> None:
    with pytest.raises(ValueError, match="no items"):
        wilson(0, n)


def test_z_is_the_975th_quantile() -> None:
    assert pytest.approx(1.959963984540054, abs=1e-15) == Z


def test_the_error_of_a_macro_average_is_the_root_of_summed_squares_over_k() -> None:
    parts = [wilson(30, 60), wilson(10, 40), wilson(90, 100)]
    found = weighted(parts, [1, 1, 1])
    errors = [math.sqrt(0.25 / 60), math.sqrt(0.1875 / 40), math.sqrt(0.09 / 100)]
    assert found.value == pytest.approx((0.5 + 0.25 + 0.9) / 3, abs=1e-15)
    assert found.stderr == pytest.approx(math.sqrt(sum(e * e for e in errors)) / 3, abs=1e-15)
    assert found.stderr < sum(errors) / 3  # not the mean of the errors (peers.md, trap 9)
    assert found.n == 200
    # the interval takes unbiased variances: s² and not p(1-p)
    sizes = (60, 40, 100)
    half = Z * math.sqrt(sum(e * e * n / (n - 1) for e, n in zip(errors, sizes, strict=True))) / 3
    assert found.low == pytest.approx(found.value - half)
    assert found.high == pytest.approx(found.value + half)


def test_weights_weigh() -> None:
    parts = [wilson(50, 100), wilson(20, 100)]
    found = weighted(parts, [3, 1])
    assert found.value == pytest.approx((3 * 0.5 + 0.2) / 4)
    assert found.stderr == pytest.approx(math.sqrt((3 * 0.05) ** 2 + 0.04**2) / 4)


def test_subjects_without_an_error_do_not_make_an_average_sure() -> None:
    found = weighted([wilson(5, 5), wilson(0, 5)], [1, 1])
    assert found.stderr > 0.05
    assert found.low < 0.4 < 0.6 < found.high


def test_the_interval_stays_between_0_and_1() -> None:
    assert weighted([wilson(20, 20)] * 3, [1, 1, 1]).high == 1.0
    assert weighted([wilson(0, 20)] * 3, [1, 1, 1]).low == 0.0


@pytest.mark.parametrize(("parts", "weights"), [([], []), ([wilson(1, 2)], [0.0])])
def test_an_average_of_nothing_is_refused(parts: list[Estimate], weights: list[float]) -> None:
    with pytest.raises(ValueError, match="nothing"):
        weighted(parts, weights)


def test_weights_must_be_as_many_as_parts() -> None:
    with pytest.raises(ValueError, match="zip"):
        weighted([wilson(1, 2), wilson(1, 2)], [1])


@pytest.mark.parametrize(("p", "n"), [(0.25, 60), (0.5, 30), (0.9, 40), (0.05, 100)])
def test_wilson_covers_the_truth_about_95_times_in_100(p: float, n: int) -> None:
    rng = random.Random(1927)
    hits = 0
    for _ in range(2000):
        found = wilson(sum(rng.random() < p for _ in range(n)), n)
        hits += found.low <= p <= found.high
    assert 0.92 <= hits / 2000 <= 0.98


@pytest.mark.parametrize(
    ("truths", "sizes"),
    [
        ([0.25] * 12, [20] * 12),
        ([0.2, 0.5, 0.9, 0.35], [25, 100, 16, 60]),
        ([0.97] * 10, [12] * 10),
    ],
)
def test_the_interval_of_a_macro_average_covers_the_truth(
    truths: list[float], sizes: list[int]
) -> None:
    rng = random.Random(2026)
    truth, hits = sum(truths) / len(truths), 0
    for _ in range(1500):
        parts = [
            wilson(sum(rng.random() < p for _ in range(n)), n)
            for p, n in zip(truths, sizes, strict=True)
        ]
        found = weighted(parts, [1.0] * len(parts))
        hits += found.low <= truth <= found.high
    # never less than promised; small near-perfect subjects may err on the wide side
    assert 0.92 <= hits / 1500 <= 1.0


# clusters: sub-questions of one item, and partial points


def test_independent_answers_have_wilsons_interval() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0]
    assert share(values, list("abcde")) == wilson(3, 5)


def test_the_error_of_clustered_answers_is_the_sandwich() -> None:
    # three items with 3, 2 and 1 sub-questions; the mean is 3 of 6
    found = share([1, 1, 0, 1, 0, 0], list("aaabbc"))
    sums = [2 - 1.5, 1 - 1.0, 0 - 0.5]
    groups = 3 / 2 * sum(x * x for x in sums) / 36
    alone = 6 / 5 * 6 * 0.25 / 36
    assert found.value == 0.5
    assert found.n == 6
    assert found.stderr == pytest.approx(max(groups, alone) ** 0.5)


def test_items_that_are_right_or_wrong_as_a_whole_count_once_each() -> None:
    values = [1.0] * 20 + [0.0] * 20 + [1.0] * 20 + [0.0] * 20
    names = [str(i // 10) for i in range(80)]
    found = share(values, names)
    assert found.stderr == pytest.approx((8 / 7 * 0.25 / 8) ** 0.5)
    assert found.high - found.low > 2.5 * (wilson(40, 80).high - wilson(40, 80).low)


def test_partial_scores_vary_less_than_right_and_wrong() -> None:
    scores = [0.5] * 30 + [1.0] * 5 + [0.0] * 5
    found = share(scores, [str(i) for i in range(40)])
    assert found.value == 0.5
    assert found.stderr == pytest.approx((40 / 39 * 10 * 0.25) ** 0.5 / 40)
    assert found.high - found.low < 0.6 * (wilson(20, 40).high - wilson(20, 40).low)


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0, 1 / 3])
def test_where_nothing_varies_every_item_still_counts_once(value: float) -> None:
    found = share([value] * 60, [str(i // 3) for i in range(60)])
    assert (found.value, found.stderr) == (pytest.approx(value), 0.0)
    assert found.low <= value <= found.high
    # as 20 items, not as 60 sub-questions
    assert (
        found.high - found.low
        > wilson(round(60 * value), 60).high - wilson(round(60 * value), 60).low
    )


def test_one_item_alone_says_next_to_nothing() -> None:
    found = share([1.0, 1.0, 0.0, 1.0], ["a"] * 4)
    assert found.high - found.low > 0.75


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="no items"):
        share([], [])


@given(
    st.lists(
        st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=6), min_size=1, max_size=12
    )
)
def test_a_share_lies_in_its_interval_whatever_the_order(items: list[list[float]]) -> None:
    rows = [(value, str(i)) for i, some in enumerate(items) for value in some]
    found = share([v for v, _ in rows], [c for _, c in rows])
    assert 0 <= found.low <= found.value + 1e-12
    assert found.value - 1e-12 <= found.high <= 1
    assert found.low < found.high
    rows.reverse()
    again = share([v for v, _ in rows], [c for _, c in rows])
    assert (again.value, again.low, again.high) == pytest.approx(
        (found.value, found.low, found.high)
    )


@pytest.mark.parametrize(
    ("groups", "size", "spread"), [(30, 20, 2.0), (26, 5, 4.0), (124, 4, 1.0), (12, 3, 3.0)]
)
def test_clustered_intervals_cover_about_95_times_in_100(
    groups: int, size: int, spread: float
) -> None:
    # an item's own rate is drawn from a beta distribution: its sub-questions belong together
    rng = np.random.default_rng(1901)
    names = [str(i // size) for i in range(groups * size)]
    truth, draws, hits = 0.4, 1000, 0
    for _ in range(draws):
        rates = rng.beta(truth * spread, (1 - truth) * spread, groups)
        values = (rng.random((groups, size)) < rates[:, None]).astype(float).ravel().tolist()
        found = share(values, names)
        hits += found.low <= truth <= found.high
    assert 0.93 <= hits / draws <= 0.975


def test_paired_differences_of_clustered_scores() -> None:
    changes = [1.0, 0.5, 0.0, -0.5, 1.0, 1.0]
    found = mean_difference(changes, list("aabbcc"))
    assert found.value == 0.5
    sums = [1.5 - 1, -0.5 - 1, 2 - 1.0]
    alone = 6 / 5 * sum((c - 0.5) ** 2 for c in changes) / 36
    assert found.stderr == pytest.approx(max(3 / 2 * sum(x * x for x in sums) / 36, alone) ** 0.5)
    turned = mean_difference([-c for c in changes], list("aabbcc"))
    assert (turned.low, turned.high) == pytest.approx((-found.high, -found.low))
    assert -1 <= found.low < found.value < found.high <= 1


def test_intervals_of_clustered_differences_cover_about_95_times_in_100() -> None:
    rng = np.random.default_rng(1902)
    names = [str(i // 5) for i in range(26 * 5)]
    hits, draws = 0, 1000
    for _ in range(draws):
        shift = rng.normal(0.05, 0.3, (26, 1))  # of an item, on all its sub-questions
        changes = (shift + rng.normal(0, 0.2, (26, 5))).clip(-1, 1)
        found = mean_difference(changes.ravel().tolist(), names)
        hits += found.low <= 0.05 <= found.high
    assert 0.93 <= hits / draws <= 0.97


@pytest.mark.parametrize("change", [0.0, 1.0, -1.0, 0.5])
def test_a_difference_that_never_varies_has_an_interval(change: float) -> None:
    found = mean_difference([change] * 12, [str(i // 3) for i in range(12)])
    assert found.value == change
    assert found.low <= change <= found.high
    assert found.high - found.low > 0.3
    assert 0 <= normal_p(found) <= 1
    assert (normal_p(found) > 0.99) == (change == 0)


def test_p_is_two_sided_and_falls_with_the_distance() -> None:
    def p(value: float) -> float:
        return normal_p(Estimate(value=value, n=9, stderr=0.1, low=0, high=1))

    assert p(0.1 * Z) == pytest.approx(0.05)
    assert p(-0.1 * Z) == pytest.approx(0.05)
    assert p(0.3) < p(0.2)


def test_a_mean_of_differences_may_be_negative() -> None:
    parts = [Estimate(value=-0.4, n=9, stderr=0.1, low=-0.6, high=-0.2)] * 2
    found = weighted(parts, [1, 3], least=-1.0)
    assert found.value == pytest.approx(-0.4)
    assert found.low < -0.4 < found.high < 0
