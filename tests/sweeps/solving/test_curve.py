"""The frontier holds exactly what no assignment beats, or says how much rounding may have cost."""

from __future__ import annotations

import numpy as np
import pytest

from bench.perf.worlds import WORLDS
from sweeps.solving.curve import frontier
from sweeps.solving.knapsack import best
from tests.support.solving import every, small_problem, total


def unbeaten(problem: tuple[list[np.ndarray], list[np.ndarray]]) -> list[tuple[int, float]]:
    found: list[tuple[int, float]] = []
    for damage, size, _ in sorted(every(problem), key=lambda one: (one[1], one[0])):
        if not found or damage < found[-1][1] - 1e-9:
            found.append((size, damage))
    return found


@pytest.mark.parametrize("step", [1, 700])
def test_equals_enumeration(step: int) -> None:
    """Also where sizes have a large common divisor."""
    rng = np.random.default_rng(step)
    for _ in range(200):
        damages, sizes = small_problem(rng, ties=True)
        sizes = [unit * step + int(rng.integers(0, 9)) for unit in sizes]
        found = frontier(damages, sizes, cells=64)
        assert found.slack == 0
        expected = unbeaten((damages, sizes))
        assert found.sizes.tolist() == [size for size, _ in expected]
        assert found.damages.tolist() == pytest.approx([damage for _, damage in expected])
        assert [total(sizes, row) for row in found.levels] == found.sizes.tolist()


def test_rounded_sizes_cost_no_more_than_is_said() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        problem = small_problem(rng, ties=False)
        found = frontier(*problem, cells=40)
        expected = unbeaten(problem)
        assert {*zip(found.sizes.tolist(), found.damages.round(9), strict=True)} <= {
            (size, round(damage, 9)) for _, size, damage in ((0, *one[1::-1]) for one in every(problem))
        }
        for size, damage in expected:
            within = found.damages[found.sizes <= size + found.slack]
            assert len(within) and within.min() <= damage + 1e-9
        assert (np.diff(found.sizes) > 0).all() and (np.diff(found.damages) < 0).all()


@pytest.mark.parametrize("world", WORLDS)
def test_agrees_with_the_best_of_each_limit(world: str) -> None:
    damages, sizes = WORLDS[world](np.random.default_rng(4), 20, 8)
    found = frontier(damages, sizes)
    assert (found.slack == 0) == (world in ("experts", "levels"))
    smallest, largest = int(found.sizes[0]), int(found.sizes[-1])
    for share in (0.0, 0.21, 0.5, 0.83, 1.0):
        limit = smallest + int(share * (largest - smallest))
        least = best(damages, sizes, limit).assignments[0].damage
        assert found.damages[found.sizes <= limit].min() >= least - 1e-9
        assert found.damages[found.sizes <= limit + found.slack].min() <= least + 1e-9


def test_more_than_256_options() -> None:
    sizes = [np.arange(300), np.arange(300)]
    found = frontier([np.arange(300)[::-1] * 1.0, np.arange(300)[::-1] * 2.0], sizes)
    assert found.levels[-1].tolist() == [299, 299] and found.levels[1].tolist() == [0, 1]
