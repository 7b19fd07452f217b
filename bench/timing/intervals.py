"""Median and interval of repeated measurements, their drift, and what a ratio says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bench.records.record import Interval


def median_interval(values: Sequence[float]) -> Interval:
    """Return the median of ``values`` with an interval that holds the true median in 95 % of cases, whatever the distribution.

    The ends are values: the r-th smallest and the r-th largest, with the largest r for which the chance that fewer than r of
    n values lie on either side of the median is at most 5 % altogether. With five values no r is enough; the smallest
    and the largest are taken then, which hold the median in 93.75 % of cases. A bootstrap of so few values would be much too
    narrow: its ends are the second smallest and second largest of five, which hold the median in 62.5 % of cases.

    Args:
        values: one number for each repeat, at least one.

    *Source*: Thompson, Ann. Math. Stat. 7 (1936) 122: the interval that inverts the sign test.
    """
    data, n = sorted(map(float, values)), len(values)
    rank = 1
    while 2 * sum(math.comb(n, fewer) for fewer in range(rank + 1)) <= 0.05 * 2**n:
        rank += 1
    return Interval(median=float(np.median(data)), low=data[rank - 1], high=data[n - rank], n=n)


def spread(interval: Interval) -> float:
    """Return the width of an interval as a share of its median."""
    return (interval.high - interval.low) / interval.median


def drift(times: Sequence[float], values: Sequence[float]) -> float:
    """Return by what share ``values`` changed from the first to the last time, along a straight line of their logarithms.

    The slope is the median of the slopes between all pairs of points, so one outlying repeat is no drift.

    Args:
        times: seconds at which the values were measured, ascending.
        values: positive numbers.

    Returns:
        0.1 for a rise by 10 %, -0.1 for a fall by 10 %; 0 for fewer than two times.

    *Source*: Sen, J. Am. Stat. Assoc. 63 (1968) 1379, slope of equation 3.1.
    """
    points = list(zip(times, map(math.log, values), strict=True))
    slopes = [(y - x) / (u - t) for (t, x), (u, y) in itertools.combinations(points, 2) if u > t]
    if not slopes:
        return 0.0
    return math.exp(float(np.median(slopes)) * (times[-1] - times[0])) - 1.0


def verdict(ratio: Interval, *, lower_is_better: bool = False) -> Literal["better", "worse", "no difference"]:
    """Return what a ratio to the base says: no difference where its interval holds 1."""
    if ratio.low <= 1.0 <= ratio.high:
        return "no difference"
    return "better" if (ratio.median < 1.0) == lower_is_better else "worse"
