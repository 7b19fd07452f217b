"""The relaxed choice: the expected size stays on the budget, and gradients are those of the relaxation."""

from __future__ import annotations

import numpy as np
import pytest

from sweeps.samplers.relaxed import chances, expected, normal, retracted, tangent, through_softmax
from sweeps.space.levels import Reals

STEP = 1e-6


def problem(seed: int = 0) -> tuple[list[Reals], list[Reals]]:
    rng = np.random.default_rng(seed)
    counts = (3, 5, 2, 4)
    return [rng.normal(size=n) for n in counts], [np.sort(rng.random(n)) * 100 for n in counts]


def nudged(alpha: list[Reals], unit: int, option: int, by: float) -> list[Reals]:
    moved = [one.copy() for one in alpha]
    moved[unit][option] += by
    return moved


def test_the_normal_is_the_gradient_of_the_expected_size() -> None:
    alpha, sizes = problem()
    for unit, own in enumerate(normal(alpha, sizes)):
        for option, slope in enumerate(own):
            up, down = (expected(nudged(alpha, unit, option, by), sizes) for by in (STEP, -STEP))
            assert (up - down) / (2 * STEP) == pytest.approx(slope, abs=1e-5)


def test_gradients_go_through_the_softmax() -> None:
    alpha, slopes = problem()
    temperature = 0.7

    def loss(at: list[Reals]) -> float:
        return float(sum(p @ d for p, d in zip(chances([one / temperature for one in at]), slopes, strict=True)))

    found = through_softmax(slopes, chances([one / temperature for one in alpha]), temperature)
    for unit, own in enumerate(found):
        for option, slope in enumerate(own):
            up, down = (loss(nudged(alpha, unit, option, by)) for by in (STEP, -STEP))
            assert (up - down) / (2 * STEP) == pytest.approx(slope, abs=1e-5)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_retraction_meets_the_budget(share: float) -> None:
    alpha, sizes = problem()
    low, high = sum(one.min() for one in sizes), sum(one.max() for one in sizes)
    budget = low + share * (high - low)
    found = retracted(alpha, sizes, budget)
    assert expected(found, sizes) == pytest.approx(budget, rel=1e-9)
    again = retracted(found, sizes, budget)
    assert all(np.allclose(a, b, atol=1e-6) for a, b in zip(found, again, strict=True))


def test_the_tangent_leaves_the_size_to_first_order() -> None:
    alpha, sizes = problem()
    direction, _ = problem(1)
    along = tangent(direction, alpha, sizes)
    assert sum(float(a @ b) for a, b in zip(along, normal(alpha, sizes), strict=True)) == pytest.approx(0.0, abs=1e-9)

    def change(vector: list[Reals]) -> float:
        return expected([a + 1e-4 * v for a, v in zip(alpha, vector, strict=True)], sizes) - expected(alpha, sizes)

    assert abs(change(along)) < 1e-3 * abs(change(direction))
