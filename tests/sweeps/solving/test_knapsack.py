"""The best assignments within a limit are those that trying all of them finds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import Bounds, LinearConstraint, milp

from bench.perf.worlds import WORLDS
from methods.framework.errors import RefusedError
from sweeps.solving import knapsack
from sweeps.solving.knapsack import best, undominated
from sweeps.solving.relaxation import hull, suffixes
from tests.support.solving import every, small_problem, total


def test_a_problem_by_hand() -> None:
    damages, sizes = [[3.0, 1.0, 0.0], [2.0, 0.5]], [[1, 2, 5], [1, 3]]
    found = best(damages, sizes, 5, 3)
    assert [(one.levels, one.damage) for one in found.assignments] == [((1, 1), 1.5), ((1, 0), 3.0), ((0, 1), 3.5)]
    assert found.gap == 0.0


@pytest.mark.parametrize("room", [1, 500])
@pytest.mark.parametrize("ties", [False, True])
def test_equals_enumeration(ties: bool, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the first pass has room for hardly any state, so that others must follow."""
    monkeypatch.setattr(knapsack, "ROOM", room)
    rng = np.random.default_rng(7 + ties)
    for _ in range(200):
        problem = small_problem(rng, ties)
        assignments = every(problem)
        limit = int(rng.choice([size for _, size, _ in assignments])) + int(rng.integers(0, 2))
        feasible = [one for one in assignments if one[1] <= limit]
        count = int(rng.choice([1, 3, 20, 2000]))
        found = best(*problem, limit, count)
        assert found.gap == 0.0
        np.testing.assert_allclose(
            [one.damage for one in found.assignments], [d for d, _, _ in feasible[:count]], atol=1e-9
        )
        levels = [one.levels for one in found.assignments]
        assert len(set(levels)) == len(levels) and set(levels) <= {one[2] for one in feasible}
        if not ties:
            assert levels == [one[2] for one in feasible[:count]]


@pytest.mark.parametrize("world", WORLDS)
def test_equals_an_integer_programme_where_there_are_many(world: str) -> None:
    rng = np.random.default_rng(3)
    damages, sizes = WORLDS[world](rng, 30, 8)
    smallest, largest = (sum(int(pick(unit)) for unit in sizes) for pick in (np.min, np.max))
    limit = smallest + (largest - smallest) * 2 // 5
    each = np.repeat(np.eye(30), 8, axis=1)
    constraints = [LinearConstraint(each, 1, 1), LinearConstraint(np.concatenate(sizes)[None] / limit, -np.inf, 1)]
    cost = np.concatenate(damages)
    scale = 1e4 / np.abs(cost).max()
    solved = milp(cost * scale, integrality=np.ones(240), bounds=Bounds(0, 1), constraints=constraints)
    found = best(damages, sizes, limit, 20)
    assert found.gap == 0.0 and len(found.assignments) == 20
    assert all(total(sizes, one.levels) <= limit for one in found.assignments)
    assert solved.fun == pytest.approx(found.assignments[0].damage * scale, rel=1e-4)
    assert found.assignments[0].damage * scale <= solved.fun + 1e-4


@pytest.mark.parametrize("world", WORLDS)
def test_fewer_are_the_first_of_more(world: str) -> None:
    damages, sizes = WORLDS[world](np.random.default_rng(5), 40, 10)
    limit = sum(int(np.median(unit)) for unit in sizes)
    many = [one.damage for one in best(damages, sizes, limit, 50).assignments]
    assert many == sorted(many)
    assert [one.damage for one in best(damages, sizes, limit, 5).assignments] == pytest.approx(many[:5], abs=1e-9)


def test_what_is_not_proved_says_by_how_much() -> None:
    """Damages that fall exactly with odd sizes: each assignment may be the one that fills the limit best."""
    rng = np.random.default_rng(0)
    sizes = [rng.integers(10**8, 2 * 10**9, 16) for _ in range(24)]
    damages = [-unit / 1e9 for unit in sizes]
    limit = sum(int(np.median(unit)) for unit in sizes)
    found = best(damages, sizes, limit, 20, most_room=500)
    last = found.assignments[-1].damage
    assert found.gap > 0.0 and last - found.gap <= -limit / 1e9 + 1e-9
    wider = best(damages, sizes, limit, 1, most_room=20_000)
    assert last - found.gap - 1e-9 <= wider.assignments[0].damage <= found.assignments[0].damage


def test_a_limit_below_the_smallest_is_refused() -> None:
    assert best([[1.0], [2.0]], [[3], [4]], 7).assignments[0].levels == (0, 0)
    with pytest.raises(RefusedError, match="smallest assignment has size 7, more than 6"):
        best([[1.0], [2.0]], [[3], [4]], 6)


@pytest.mark.parametrize(
    ("damages", "sizes"),
    [([[math.inf]], [[1]]), ([[math.nan]], [[1]]), ([[]], [[]]), ([], []), ([[1.0]], [[1, 2]]), ([[1.0]], [[0.5]]),
     ([[1.0], [1.0]], [[2**53], [1]])],
)  # fmt: skip
def test_what_is_no_problem_is_refused(damages: list[list[float]], sizes: list[list[int]]) -> None:
    with pytest.raises(ValueError):
        best(damages, sizes, 10)


def test_dominance_counts_as_a_loop_does() -> None:
    rng = np.random.default_rng(1)
    for count in (1, 2, 7):
        for damages in (rng.normal(size=700), rng.integers(0, 9, 700).astype(float)):
            expected = [int((damages[:place] <= damage).sum()) < count for place, damage in enumerate(damages)]
            assert undominated(damages, count).tolist() == expected


def test_the_hull_and_the_relaxation_by_hand() -> None:
    sizes, damages = np.array([4, 1, 2, 3, 5]), np.array([0.0, 6.0, 5.0, 1.0, 2.0])
    assert hull(sizes, damages) == [(1, 6.0), (3, 1.0), (4, 0.0)]
    both, second, none = suffixes([sizes, np.array([0, 1])], [damages, np.array([1.0, 0.25])])
    assert none.least(np.array([-1, 0, 9])).tolist() == [math.inf, 0.0, 0.0]
    assert second.least(np.array([0, 1, 2])).tolist() == [1.0, 0.25, 0.25]
    assert both.least(np.array([0, 1, 2, 3, 4, 5, 6])).tolist() == [math.inf, 7.0, 4.5, 2.0, 1.0, 0.25, 0.25]
    assert (both.price(1), both.price(3), both.price(4), both.price(5)) == (2.5, 1.0, 0.75, 0.0)
