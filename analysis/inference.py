"""The statistics of a leaderboard: averages with errors, paired differences, and the correction for many tests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import norm, t

Z95 = float(norm.ppf(0.975))


@dataclass(frozen=True, slots=True)
class Difference:
    """Difference to a reference, in the unit of the score, with a 95 % interval and a two-sided p-value."""

    value: float
    low: float
    high: float
    p: float

    @property
    def error(self) -> float:
        """Standard error: half the width of the interval over 1.96."""
        return (self.high - self.low) / (2 * Z95)


def mean(values: Sequence[float]) -> float:
    """Return the mean, which does not depend on the order of ``values``."""
    return math.fsum(values) / len(values)


def mean_with_error(values: Sequence[float], errors: Sequence[float | None]) -> tuple[float, float | None]:
    """Return the mean of independent scores and its standard error sqrt(sum se^2) / n.

    The tasks are taken as fixed: the error is that of the items within them. None where a task has no error.
    """
    known = [error for error in errors if error is not None]
    if len(known) < len(errors):
        return mean(values), None
    return mean(values), math.sqrt(math.fsum(error**2 for error in known)) / len(values)


def difference(value: float, error: float) -> Difference:
    """Return ``value`` with the normal interval and p-value of its standard ``error``.

    With an error of 0 the interval is a point; p is 1 for no difference and 0 for any other.
    """
    if error == 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0)
    return Difference(value, value - Z95 * error, value + Z95 * error, float(2 * norm.sf(abs(value) / error)))


def average_difference(parts: Sequence[tuple[float, float]]) -> Difference:
    """Return the difference of two averages over the same tasks.

    Args:
        parts: for each task the difference and its standard error; the tasks share no items, so errors are independent.

    Returns:
        Mean of the differences with standard error sqrt(sum se^2) / n and the normal interval and p-value of that.
    """
    average, error = mean_with_error([value for value, _ in parts], [error for _, error in parts])
    assert error is not None
    return difference(average, error)


def holm(p: Sequence[float]) -> list[float]:
    """Return the p-values of Holm's step-down procedure, in the order given: at most 1, in the order of ``p``.

    *Source*: Holm 1979. Rejecting those below 0.05 keeps the chance of any false rejection under 0.05.
    """
    adjusted = [1.0] * len(p)
    running = 0.0
    for position, index in enumerate(sorted(range(len(p)), key=lambda i: (p[i], i))):
        running = max(running, min(1.0, (len(p) - position) * p[index]))
        adjusted[index] = running
    return adjusted


@dataclass(frozen=True, slots=True)
class SeedMean:
    """Mean of one number over seeds.

    Args:
        half: half of the 95 % interval of the mean, Student's t with n - 1 degrees of freedom; None for one seed.
        n: seeds.
    """

    value: float
    half: float | None
    n: int


def over_seeds(values: Sequence[float]) -> SeedMean:
    """Return the mean over seeds with its interval: t(0.975, n - 1) times the standard deviation over sqrt(n).

    The interval says where the mean over all seeds may lie on these very items; the error of the items is another one.
    """
    n, average = len(values), mean(values)
    if n == 1:
        return SeedMean(average, None, 1)
    deviation = math.sqrt(math.fsum((value - average) ** 2 for value in values) / (n - 1))
    return SeedMean(average, float(t.ppf(0.975, n - 1)) * deviation / math.sqrt(n), n)


def difference_over_seeds(parts: Sequence[Difference]) -> Difference:
    """Return the mean of one difference over seeds; its interval holds the error of the items and that of the seeds.

    The items are the same for every seed, so their error does not shrink with seeds: half-widths are averaged. The two
    half-widths then add in squares.
    """
    items = math.fsum(part.high - part.low for part in parts) / (2 * len(parts))
    average = over_seeds([part.value for part in parts])
    return difference(average.value, math.hypot(items, average.half or 0.0) / Z95)
