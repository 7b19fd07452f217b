"""The least sum of one option a row, against trying every combination."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from methods.kernels.least_sum import least_sum


@pytest.mark.parametrize("seed", range(20))
def test_every_total_is_that_of_trying_all(seed):
    rng = np.random.default_rng(seed)
    losses = [rng.choice([0.0, 1.0, 2.5, np.inf, rng.random()], size=rng.integers(1, 5)) for _ in range(4)]
    sizes = list(product(*(range(1, len(row) + 1) for row in losses)))
    for total in range(20):
        sums = [sum(row[k - 1] for row, k in zip(losses, some, strict=True)) for some in sizes if sum(some) == total]
        found = least_sum(losses, total)
        if not np.isfinite(min(sums, default=np.inf)):
            assert found is None
            continue
        assert found is not None
        assert sum(found) == total
        assert sum(row[k - 1] for row, k in zip(losses, found, strict=True)) == pytest.approx(min(sums))


def test_losses_that_are_not_convex_are_no_obstacle():
    # Taking the cheapest single step each time would go from (3, 3) to (2, 3) and never see that 1 costs no more than 2.
    assert least_sum([np.array([1.0, 1.0, 0.0]), np.array([5.0, 0.9, 0.0])], 4) == [1, 3]
