"""The Pareto front of quality against size."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pareto(size: Sequence[float | None], quality: Sequence[float | None]) -> list[bool]:
    """Tell which points no other point beats: none is at most as large and at least as good, and better in one.

    Points without a size or a quality (None, NaN) are not on the front; equal points are on it together.
    """
    points = sorted(
        (s, -q, i)
        for i, (s, q) in enumerate(zip(size, quality, strict=True))
        if s is not None and q is not None and not math.isnan(s) and not math.isnan(q)
    )
    front = [False] * len(size)
    best, best_point = -math.inf, (math.nan, math.nan)
    for s, negative, index in points:
        if -negative > best or (s, negative) == best_point:
            front[index] = True
            best, best_point = -negative, (s, negative)
    return front
