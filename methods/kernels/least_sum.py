"""One option for each row, of least total loss among those whose sizes add up to a given whole number.

Shape letters: B total sizes from 0 on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from methods.framework.stats import Array


def least_sum(losses: Sequence[Array], total: int) -> list[int] | None:
    """Return the size of each row that makes the sum of losses least, exactly, or None where no sizes add up to ``total``.

    Dynamic programming over the rows; of equal sums the one with smaller sizes in later rows is taken.

    Args:
        losses: of each row the loss of size 1, 2, ...; infinite where a size is not allowed.
        total: sum of the sizes.
    """
    best_B = np.full(total + 1, np.inf)
    best_B[0] = 0.0
    chosen: list[np.ndarray] = []
    for row in losses:
        longer_B, size_B = np.full(total + 1, np.inf), np.zeros(total + 1, dtype=np.int64)
        for size, loss in enumerate(row[:total], 1):
            sum_B = best_B[: total + 1 - size] + loss
            better_B = sum_B < longer_B[size:]
            longer_B[size:][better_B] = sum_B[better_B]
            size_B[size:][better_B] = size
        best_B = longer_B
        chosen.append(size_B)
    if not np.isfinite(best_B[total]):
        return None
    sizes: list[int] = []
    for size_B in reversed(chosen):
        sizes.append(int(size_B[total]))
        total -= sizes[-1]
    return sizes[::-1]
