"""Median and interval of repeated measurements, their drift, and what a ratio says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from bench.records.record import Interval


def median_interval(values: Sequence[float], *, stopped: bool = False) -> Interval:
    """Return the median of ``values`` with an interval that holds the true median in at least 95 % of cases.

    The ends are values: the r-th smallest and the r-th largest, with the largest r for which the chance that fewer than r of
    n values lie on either side of the median is at most 5 % altogether, whatever the distribution. Where no r is enough, with
    fewer than six values, the interval from the smallest to the largest is joined with Student's for the mean of the logarithms.
    A bootstrap of so few values would be much too narrow: it holds the median of five in 62.5 % of cases.

    Two things make such an interval too short, and both are made up for. Measurements that go on until the interval is short
    enough stop where chance made it short: with ``stopped`` the level is 99 % (no r is enough below eight values then). And
    repeats that follow each other are alike: ends move away from the median, on a logarithmic scale, by
    sqrt((1 + c) / (1 - c)) with c the ``correlation`` of neighbours. Few repeats tell it badly, and one told too low makes the
    interval too short, so where it is positive three quarters of its standard error sqrt((1 - c^2) / n) are added, up to 0.9
    in all. docs/trust.md tells what is covered then.

    Args:
        values: one positive number for each repeat, in the order of measurement, at least one.
        stopped: whether their spread decided how many there are.

    *Source*: Thompson, Ann. Math. Stat. 7 (1936) 122: the interval that inverts the sign test; Bartlett, J. R. Stat. Soc. 98
    (1935) 536: the variance of a mean of correlated values, and Suppl. 8 (1946) 27: that of a correlation of neighbours.
    """
    data, n, miss = sorted(map(float, values)), len(values), 0.01 if stopped else 0.05
    middle, rank = float(np.median(data)), 1
    while _outside(rank + 1, n) <= miss:
        rank += 1
    low, high = data[rank - 1], data[n - rank]
    if n > 1 and _outside(rank, n) > miss and low > 0:
        from scipy.stats import t as student  # here, since listings read this module

        logs = np.log(data)
        half = float(student.ppf(1 - miss / 2, n - 1) * logs.std(ddof=1) / math.sqrt(n))
        low, high = min(low, math.exp(logs.mean() - half)), max(high, math.exp(logs.mean() + half))
    alike = correlation(values)
    if alike > 0 and low > 0:
        alike = min(0.9, alike + 0.75 * math.sqrt((1 - alike**2) / n))
        factor = math.sqrt((1 + alike) / (1 - alike))
        low, high = middle * (low / middle) ** factor, middle * (high / middle) ** factor
    return Interval(median=middle, low=low, high=high, n=n)


def _outside(rank: int, n: int) -> float:
    """Return the chance that fewer than ``rank`` of ``n`` values lie on either side of the median."""
    return float(2 * sum(math.comb(n, fewer) for fewer in range(rank)) / 2**n)


def correlation(values: Sequence[float]) -> float:
    """Return how alike neighbouring repeats are: the correlation of their logarithms at lag one, 0 to 0.9.

    That of n values is too low by about (1 + 3 c) / n, which is added.

    Args:
        values: positive numbers in the order of measurement.

    *Source*: Kendall, Biometrika 41 (1954) 403.
    """
    if len(values) < 3 or min(values) <= 0:
        return 0.0
    logs = np.log(np.asarray(values, dtype=np.float64))
    logs -= logs.mean()
    total = float(np.square(logs).sum())
    if total == 0:
        return 0.0
    found = float((logs[1:] * logs[:-1]).sum()) / total
    return min(0.9, max(0.0, found + (1 + 3 * found) / len(values)))


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
