"""Several limits at once: as enumeration finds."""

from __future__ import annotations

import numpy as np
import pytest

from methods.framework.errors import RefusedError
from sweeps.solving import several
from sweeps.solving.several import best_within
from tests.support.solving import every, small_problem, total


@pytest.mark.parametrize("ties", [False, True])
def test_equals_enumeration(ties: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    solved = several._Programme.ranking
    monkeypatch.setattr(several._Programme, "ranking", lambda self, count: asked.append(count) or solved(self, count))
    rng = np.random.default_rng(11 + ties)
    for _ in range(30):
        damages, sizes = small_problem(rng, ties)
        other = [rng.permutation(unit) for unit in sizes]
        inside = [int(rng.integers(0, len(unit))) for unit in sizes]
        limits = [total(sizes, inside), total(other, inside)]
        feasible = [
            (damage, levels)
            for damage, size, levels in every((damages, sizes))
            if size <= limits[0] and total(other, levels) <= limits[1]
        ]
        found = best_within(damages, [sizes, other], limits, 5)
        assert [one.damage for one in found.assignments] == pytest.approx([d for d, _ in feasible[:5]], abs=1e-9)
        levels = {one.levels for one in found.assignments}
        assert len(levels) == len(found.assignments) and levels <= {levels for _, levels in feasible}
    assert len(asked) > 5


def test_no_assignment_for_both_is_refused() -> None:
    damages, sizes, other = [[0.0, 1.0]], [[1, 2]], [[2, 1]]
    assert best_within(damages, [sizes, other], [2, 1]).assignments[0].levels == (1,)
    with pytest.raises(RefusedError, match="meets all limits together"):
        best_within(damages, [sizes, other], [1, 1])


def test_numbers_that_differ_are_refused() -> None:
    for limits in ([], [1]):
        with pytest.raises(ValueError, match="one for each"):
            best_within([[0.0]], [[[1]], [[1]]], limits)
