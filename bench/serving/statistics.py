"""Median and interval of repeated measurements."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bench.record import Interval


def median_interval(values: Sequence[float], seed: int = 0, resamples: int = 10_000) -> Interval:
    """Return the median of ``values`` with its 95 % percentile-bootstrap interval.

    With five repeats the interval of a median is close to the range from the smallest to the largest value; it says how
    much the repeats differ and not more.

    Args:
        values: one number for each repeat, at least one.
        seed: seed of the resampling.
        resamples: bootstrap samples drawn.
    """
    data = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(data), size=(resamples, len(data)))
    low, high = np.quantile(np.median(data[draws], axis=1), [0.025, 0.975])
    return Interval(median=float(np.median(data)), low=float(low), high=float(high), n=len(data))
