"""Intervals and p-values of differences whose items are not 0/1: each interval leaves out 0 exactly where its p is below 0.05.

Letters: n items, B draws of the bootstrap.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, skew, t

from bench.evaluation.items import Statistic, corpus_score

Vector = NDArray[np.float64]

Z = float(norm.ppf(0.975))
"""Half the width of a 95 % interval of a standard normal value."""


class Span(NamedTuple):
    """A 95 % interval of a difference, and the p-value of no difference that belongs to it."""

    low: float
    high: float
    p: float


def hull(spans: Iterable[Span]) -> Span:
    """Return the interval from the lowest end to the highest, with the p-value of the test that rejects only where all do.

    That is the largest of theirs, and 1 where two of them lie on different sides of 0.
    """
    parts = list(spans)
    low, high = min(part.low for part in parts), max(part.high for part in parts)
    p = max(part.p for part in parts)
    return Span(low, high, 1.0 if low <= 0.0 <= high and p < 0.05 else p)


def expanded_bootstrap(differences: Vector, items: int) -> Span:
    """Return the expanded percentile interval of bootstrap differences, and the p-value that inverts it.

    The ends are the draws of rank r = floor((B + 1) level) from either side, with level Phi(sqrt(n / (n - 1)) t(0.025, n - 1)),
    which makes up for the spread of n draws being that of n - 1 and for Student's t. Where the draws are too few for that
    level, the interval goes from the smallest of them and 0 to the largest of them and 0. With k the smaller number of draws
    on either side of zero, zero itself included, p is the level of the widest interval that leaves out 0:
    2 T(sqrt((n - 1) / n) Phi^-1((k + 1) / (B + 1)), n - 1), at most 1.

    Args:
        differences: of the draws, shape (B,); those that are no numbers (both perplexities infinite) say nothing.
        items: from which they are drawn.

    *Source*: Hesterberg, The American Statistician 69 (2015) 371, section 5.3.
    """
    draws = np.sort(differences[~np.isnan(differences)])
    count = len(draws)
    if not count:
        return Span(math.nan, math.nan, 1.0)
    if items < 2:
        return Span(min(0.0, float(draws[0])), max(0.0, float(draws[-1])), 1.0)
    widen = math.sqrt(items / (items - 1))
    rank = math.floor((count + 1) * float(norm.cdf(widen * t.ppf(0.025, items - 1))))
    low, high = float(draws[max(rank, 1) - 1]), float(draws[-max(rank, 1)])
    if rank < 1:
        low, high = min(low, 0.0), max(high, 0.0)
    side = min(int((draws <= 0).sum()), int((draws >= 0).sum()))
    p = 2 * float(t.cdf(norm.ppf((side + 1) / (count + 1)) / widen, items - 1))
    return Span(low, high, min(1.0, p))


def skewness_corrected(difference: float, influences: Vector) -> Span | None:
    """Return the interval of Student's t whose skewness is taken out by Hall's transformation, and its p-value.

    With s^2 the mean square of the influences over n - 1, g their skewness, W = (difference - truth) / (sqrt(n) s) and
    Q(W) = W + g W^2 / 3 + g^2 W^3 / 27 + g / (6 n), sqrt(n) Q(W) is taken for Student's t. Q rises, so the interval is where
    it lies between -t(0.975, n - 1) and t(0.975, n - 1), and p = 2 T(-|sqrt(n) Q(difference / (sqrt(n) s))|, n - 1).

    Args:
        difference: that was measured.
        influences: by how much each item moves it, times n, of mean 0, shape (n,).

    Returns:
        None where there are fewer than three items, or all move it alike, or one beyond what numbers hold.

    *Source*: Hall, J. R. Stat. Soc. B 54 (1992) 221, equation 2.5.
    """
    n = len(influences)
    if n < 3 or not np.isfinite(influences).all() or not influences.any():
        return None
    error = math.sqrt(float(np.square(influences).mean()) / (n - 1))
    lean, root = float(skew(influences, bias=False)), math.sqrt(n)
    if error == 0 or not math.isfinite(lean):
        return None

    def inverse(value: float) -> float:
        if abs(lean) < 1e-6:
            return value
        return 3 / lean * (float(np.cbrt(1 + lean * (value - lean / (6 * n)))) - 1)

    at = difference / (root * error)
    value = root * (at + lean * at**2 / 3 + lean**2 * at**3 / 27 + lean / (6 * n))
    edge = float(t.ppf(0.975, n - 1)) / root
    low, high = (difference - root * error * inverse(end) for end in (edge, -edge))
    return Span(low, high, 2 * float(t.sf(abs(value), n - 1)))


def influences(statistic: Statistic, values: Vector, weights: Vector) -> Vector:
    """Return by how much each item moves the score, times n: its derivative by the item's weight among all.

    Args:
        statistic: how items become a score.
        values: of the items.
        weights: of the items.
    """
    score, n = float(corpus_score(statistic, values, weights)), len(values)
    share = weights / weights.sum() * n
    if statistic == "mean":
        return np.asarray(share * (values - score))
    rate = -float(values.sum()) / float(weights.sum())
    slope = score if statistic == "perplexity" else 1.0 / math.log(2.0)
    with np.errstate(invalid="ignore", over="ignore"):  # an infinite perplexity has no influences
        return np.asarray(-slope * (values * n / weights.sum() + rate * share))


def adjusted_wald(differences: Vector, weights: Vector) -> Span:
    """Return the normal interval of a weighted mean of values between -1 and 1, with half an item of +1, half of -1 and one of 0.

    Args:
        differences: of the items.
        weights: of the items.
    """
    share = weights / weights.sum() * len(weights)
    total = len(weights) + 2.0
    middle = float((share * differences).sum()) / total
    square = (float((share * differences**2).sum()) + 1.0) / total - middle**2
    # Unequal weights leave fewer items in effect.
    error = math.sqrt(max(square, 0.0) / (total / float((share**2).mean())))
    p = 2 * float(norm.sf(abs(middle) / error)) if error else 1.0
    return Span(middle - Z * error, middle + Z * error, p)
