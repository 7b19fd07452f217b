"""Interval, drift and verdict of repeated measurements."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from bench.records.record import Interval
from bench.timing.intervals import correlation, drift, median_interval, spread, verdict

SHUFFLED = [1.0, 100.0, 2.0, 4.0, 3.0]
"""Five values whose neighbours are not alike."""


def test_interval_of_the_median() -> None:
    assert median_interval([2.0] * 5).model_dump() == {"median": 2.0, "low": 2.0, "high": 2.0, "n": 5}
    one = median_interval(SHUFFLED)
    # Five values: no rank holds the median in 95 %, so Student's interval of the logarithms, 0.52 to 43, is joined.
    logs = [math.log(value) for value in SHUFFLED]
    half = 2.776445 * statistics.stdev(logs) / math.sqrt(5)
    assert correlation(SHUFFLED) == 0.0
    assert (one.median, one.high) == (3.0, 100.0) and one.low == pytest.approx(
        math.exp(statistics.fmean(logs) - half), rel=1e-5
    )
    assert median_interval([7.0]).low == 7.0


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("n", range(8, 26))
def test_the_ends_are_the_values_that_hold_the_median_as_often_as_they_say(n: int, stopped: bool) -> None:
    # Which of n values lie below the true median is n fair coins; every outcome is looked at by its number of values below.
    low, high = [float(rank) for rank in range(1, n // 2 + 1)], [float(rank) for rank in range(n // 2 + 1, n + 1)]
    ranks = [rank for pair in itertools.zip_longest(high, low) for rank in pair if rank is not None]
    assert correlation(ranks) == 0.0, "neighbours lie on both sides of the median"
    one, level = median_interval(ranks, stopped=stopped), 0.99 if stopped else 0.95
    inside = sum(math.comb(n, below) for below in range(n + 1) if one.low <= below < one.high) / 2**n
    assert inside >= level
    if one.low > 1.0 or n > 11:
        tighter = sum(math.comb(n, below) for below in range(n + 1) if one.low + 1 <= below < one.high - 1) / 2**n
        assert tighter < level, "it is no wider than it must be"


def _stopped(noise: Callable[[int], NDArray[np.float64]], runs: int) -> tuple[float, float]:
    """Return how often the interval holds 1 among rows that are not marked noisy, and the share of these rows."""
    held = unmarked = 0
    for _ in range(runs):
        ratios = np.exp(noise(15)).tolist()
        for n in range(5, 16):
            one = median_interval(ratios[:n], stopped=True)
            if spread(one) <= 0.10:
                break
        if spread(one) <= 0.10:
            unmarked += 1
            held += one.low <= 1.0 <= one.high
    return held / unmarked, unmarked / runs


@pytest.mark.parametrize(("sigma", "least"), [(0.02, 0.98), (0.035, 0.97), (0.05, 0.95)])
def test_rows_that_stopped_when_they_looked_good_cover(sigma: float, least: float) -> None:
    """Up to ten more pairs follow while a row is noisy: those that end unmarked are the lucky ones, and cover all the same."""
    draw = np.random.default_rng(3)
    covered, share = _stopped(lambda n: sigma * draw.standard_normal(n), 500)
    assert covered >= least and share > 0.4


def test_correlated_repeats_cover_better_than_their_number_says() -> None:
    """Neighbours that correlate by 0.3: without the correction 0.87 of the rows cover (0.6: 0.73)."""
    draw = np.random.default_rng(4)

    def noise(n: int, strength: float) -> NDArray[np.float64]:
        values = draw.standard_normal(n)
        for index in range(1, n):
            values[index] = strength * values[index - 1] + math.sqrt(1 - strength**2) * values[index]
        return np.asarray(0.02 * values)

    assert _stopped(lambda n: noise(n, 0.3), 500)[0] >= 0.95
    assert _stopped(lambda n: noise(n, 0.6), 500)[0] >= 0.91


def test_correlation_of_neighbours() -> None:
    draw = np.random.default_rng(5)
    values = draw.standard_normal(20_000)
    for index in range(1, len(values)):
        values[index] = 0.6 * values[index - 1] + 0.8 * values[index]
    assert correlation(np.exp(values).tolist()) == pytest.approx(0.6, abs=0.02)
    assert correlation(np.exp(draw.standard_normal(20_000)).tolist()) < 0.03
    assert correlation([1.0, 1.0, 1.0]) == 0.0 == correlation([1.0, 2.0]) == correlation([1.0, 0.0, 2.0])
    rising = [1.01**step for step in range(12)]
    assert correlation(rising) > 0.5
    plain = sorted(rising)
    one = median_interval(rising)
    alike = correlation(rising)
    alike = min(0.9, alike + 0.75 * math.sqrt((1 - alike**2) / 12))
    factor = math.sqrt((1 + alike) / (1 - alike))
    assert one.low == pytest.approx(one.median * (plain[2] / one.median) ** factor), "ends move away from the median"
    assert one.high == pytest.approx(one.median * (plain[-3] / one.median) ** factor)


def test_equal_models_are_rarely_called_different() -> None:
    draw = np.random.default_rng(0)
    said = [verdict(median_interval(np.exp(0.1 * draw.standard_normal(5)).tolist())) for _ in range(2000)]
    assert 1 - said.count("no difference") / len(said) < 0.05


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
