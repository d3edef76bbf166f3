"""Intervals are what the textbooks say, and cover what they promise."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from ceval_suite.schema import Estimate
from ceval_suite.stats import Z, weighted, wilson


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
    assert found.low == pytest.approx(found.value - Z * found.stderr)
    assert found.high == pytest.approx(found.value + Z * found.stderr)


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
