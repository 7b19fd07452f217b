"""Interval, drift and verdict of repeated measurements."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.records.record import Interval
from bench.timing.intervals import drift, median_interval, verdict


def test_interval_of_the_median() -> None:
    assert median_interval([2.0] * 5).model_dump() == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 5}
    one = median_interval([100.0, 3.0, 1.0, 4.0, 2.0])
    assert (one.median, one.low, one.high) == (3.0, 1.0, 100.0)
    assert median_interval([7.0]).low == 7.0


@pytest.mark.parametrize("n", range(5, 26))
def test_the_interval_holds_the_median_as_often_as_it_says(n: int) -> None:
    # Which of n values lie below the true median is n fair coins; every outcome is looked at by its number of values below.
    ranks = [float(rank) for rank in range(1, n + 1)]
    one = median_interval(ranks)
    inside = sum(math.comb(n, below) for below in range(n + 1) if one.low <= below < one.high) / 2**n
    assert inside >= (0.9375 if n == 5 else 0.95)
    if one.low > 1.0 or n > 8:
        tighter = sum(math.comb(n, below) for below in range(n + 1) if one.low + 1 <= below < one.high - 1) / 2**n
        assert tighter < 0.95, "it is no wider than it must be"


def test_equal_models_are_rarely_called_different() -> None:
    draw = np.random.default_rng(0)
    said = [verdict(median_interval(np.exp(0.1 * draw.standard_normal(5)).tolist())) for _ in range(2000)]
    share = 1 - said.count("no difference") / len(said)
    assert abs(share - 1 / 16) < 0.02


def test_drift_follows_the_line_through_the_logarithms() -> None:
    assert drift([0.0, 1.0, 5.0], [2.0, 2.2, 2.0 * 1.1**5]) == pytest.approx(1.1**5 - 1)
    assert drift([0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 4.0, 99.0, 4.0, 4.0]) == 0.0
    assert drift([0.0, 1.0, 2.0, 3.0, 4.0], [4.0, 4.0, 4.0, 4.0, 99.0]) == 0.0, (
        "one outlier, though the last one, is no drift"
    )
    assert drift([0.0, 2.0], [4.0, 1.0]) == pytest.approx(-0.75)
    assert drift([1.0], [4.0]) == 0.0 == drift([1.0, 1.0], [4.0, 5.0])


@pytest.mark.parametrize(
    ("low", "median", "high", "lower_is_better", "said"),
    [
        (1.01, 1.2, 1.3, False, "better"),
        (1.01, 1.2, 1.3, True, "worse"),
        (0.8, 0.9, 0.99, False, "worse"),
        (0.8, 0.9, 0.99, True, "better"),
        (0.99, 1.2, 1.3, False, "no difference"),
        (1.0, 1.2, 1.3, False, "no difference"),
        (0.8, 0.9, 1.0, True, "no difference"),
    ],
)
def test_a_ratio_whose_interval_holds_one_is_no_difference(
    low: float, median: float, high: float, lower_is_better: bool, said: str
) -> None:
    assert verdict(Interval(median=median, low=low, high=high, n=5), lower_is_better=lower_is_better) == said
