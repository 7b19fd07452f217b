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

    @property
    def below(self) -> float:
        """Distance of the lower end of the interval from the value."""
        return self.value - self.low

    @property
    def above(self) -> float:
        """Distance of the upper end of the interval from the value."""
        return self.high - self.value


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
    return between(value, Z95 * error, Z95 * error)


def between(value: float, below: float, above: float) -> Difference:
    """Return ``value`` with the interval from ``value - below`` to ``value + above`` and a p-value that agrees with it.

    p is that of a normal error, the distance of the interval's end on the side of 0 over 1.96, so it is below 0.05 exactly
    where the interval leaves out 0.

    Args:
        value: the difference.
        below: distance of the lower end, not negative.
        above: distance of the upper end, not negative.
    """
    side = below if value > 0 else above
    known = float(2 * norm.sf(Z95 * abs(value) / side)) if side else float(value == 0)
    return Difference(value, value - below, value + above, known)


def average_difference(parts: Sequence[Difference]) -> Difference:
    """Return the difference of two averages over the same tasks.

    The distances of the ends from the value add in squares, each side by itself, so that the lopsided intervals of tasks in which
    few items changed keep their longer side: low = mean - sqrt(sum below^2) / n, high = mean + sqrt(sum above^2) / n.

    Args:
        parts: the difference of each task with its interval; the tasks share no items, so errors are independent.

    *Source*: Zou and Donner, Statistics in Medicine 27 (2008) 1693, equation 3 for two terms; for sums of more, Zou, Huang and
    Zhang, Computational Statistics and Data Analysis 53 (2009) 1080.
    """
    below, above = (math.sqrt(math.fsum(side**2 for side in sides)) / len(parts) for sides in _sides(parts))
    return between(mean([part.value for part in parts]), below, above)


def _sides(parts: Sequence[Difference]) -> tuple[list[float], list[float]]:
    return [part.below for part in parts], [part.above for part in parts]


def proportion_error(value: float, items: int) -> float:
    """Return a standard error of a share of items that is not 0 where all or none of them are right.

    That of (right + 2) / (items + 4), the middle of the adjusted interval.

    Args:
        value: share of the items, 0 to 1.
        items: how many there are.

    *Source*: Agresti and Coull, The American Statistician 52 (1998) 119.
    """
    share = (value * items + 2) / (items + 4)
    return math.sqrt(share * (1 - share) / (items + 4))


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

    The items are the same for every seed, so their error does not shrink with seeds: the two sides of the intervals are
    averaged. Each then adds in squares to the half-width over seeds.
    """
    average = over_seeds([part.value for part in parts])
    below, above = (mean(sides) for sides in _sides(parts))
    seeds = average.half or 0.0
    return between(average.value, math.hypot(below, seeds), math.hypot(above, seeds))
