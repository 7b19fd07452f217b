"""The best assignments within several limits at once: bytes and active parameters, say.

With x[u, o] = 1 where unit u has option o: minimise sum d x, with sum_o x[u, o] = 1 for each unit and sum s_q x <= limit_q for
each limit q. HiGHS solves that; each assignment found is then excluded by sum_u x[u, l_u] <= U - 1, and the next is asked for.
Where one limit alone decides, ``knapsack`` answers, which is much faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from methods.framework.errors import RefusedError
from sweeps.solving.knapsack import best
from sweeps.solving.problem import Assignment, DamageRows, Floats, Ints, Ranking, SizeRows, as_damages, as_sizes, summed

_SCALE = 1e4
"""Largest damage as the solver sees it: it stops 1e-6 above the optimum, and takes constraints as met within 1e-6."""

_INFEASIBLE = 2  # of scipy's `milp`


def best_within(
    damages: DamageRows,
    sizes: Sequence[SizeRows],
    limits: Sequence[int],
    count: int = 1,
) -> Ranking:
    """Return the ``count`` best assignments that meet every limit, ascending in damage.

    Args:
        damages: of each option of each unit; finite, of any sign, in any order.
        sizes: for each limit the sizes of the same options; whole numbers.
        limits: largest sum of each of ``sizes``.
        count: assignments wanted.

    Raises:
        RefusedError: no assignment meets all limits.
        ValueError: as for ``knapsack.best``; other numbers of sizes and limits, or none.
    """
    if not limits or len(sizes) != len(limits):
        raise ValueError(f"{len(sizes)} sizes and {len(limits)} limits: one for each, at least one")
    damages_U = as_damages(damages)
    sizes_QU = [as_sizes(one, damages_U) for one in sizes]
    for sizes_U, limit in zip(sizes_QU, limits, strict=True):
        ranking = best(damages_U, sizes_U, limit, count)
        if all(_met(sizes_QU, limits, one.levels) for one in ranking.assignments):
            return ranking
    return _Programme(damages_U, sizes_QU, limits).ranking(count)


def _met(sizes_QU: Sequence[Sequence[Ints]], limits: Sequence[int], levels: Sequence[int]) -> bool:
    sums = (sum(int(unit[level]) for unit, level in zip(one, levels, strict=True)) for one in sizes_QU)
    return all(size <= limit for size, limit in zip(sums, limits, strict=True))


class _Programme:
    """The integer programme, with the assignments that are excluded."""

    def __init__(self, damages_U: Sequence[Floats], sizes_QU: Sequence[Sequence[Ints]], limits: Sequence[int]) -> None:
        self.damages_U, self.sizes_QU, self.limits = damages_U, sizes_QU, limits
        self.starts = np.cumsum([0, *(len(unit) for unit in damages_U)])
        self.excluded: list[Floats] = []

    def ranking(self, count: int) -> Ranking:
        """Return the best ``count`` assignments; RefusedError where there is none."""
        found: list[Assignment] = []
        while len(found) < count and (levels := self._solved()) is not None:
            self.excluded.append(self._row(levels))
            # The solver may overstep a limit by its tolerance; such an assignment is excluded and not counted.
            if _met(self.sizes_QU, self.limits, levels):
                found.append(Assignment(levels, summed(self.damages_U, levels)))
        if not found:
            raise RefusedError("no assignment meets all limits together; allow a larger one")
        return Ranking(tuple(sorted(found, key=lambda one: one.damage)))

    def _row(self, levels: Sequence[int]) -> Floats:
        row = np.zeros(int(self.starts[-1]))
        row[self.starts[:-1] + np.asarray(levels)] = 1.0
        return row

    def _solved(self) -> tuple[int, ...] | None:
        """Return the levels of the best assignment that is not excluded, or None where there is none."""
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        units = len(self.damages_U)
        one_each = np.repeat(np.eye(units), np.diff(self.starts), axis=1)
        rows, highest = [], []
        for sizes_U, limit in zip(self.sizes_QU, self.limits, strict=True):
            least = sum(int(unit.min()) for unit in sizes_U)
            above = np.concatenate([unit - unit.min() for unit in sizes_U]).astype(np.float64)
            unit_of_size = max(1.0, float(above.max())) / _SCALE
            rows.append(above / unit_of_size)
            highest.append((limit - least) / unit_of_size)
        rows += self.excluded
        highest += [units - 1.0] * len(self.excluded)
        # Of each unit only differences matter; the largest of all becomes the solver's unit.
        cost = np.concatenate([unit - unit.min() for unit in self.damages_U])
        result: Any = milp(
            cost * (_SCALE / max(float(cost.max()), 1e-300)),
            integrality=np.ones(len(cost)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(csr_array(one_each), 1, 1),
                LinearConstraint(csr_array(np.array(rows)), -np.inf, np.array(highest)),
            ],
            options={"mip_rel_gap": 0.0},
        )
        if result.status == _INFEASIBLE:
            return None
        if result.x is None:
            raise RefusedError(f"the solver gave up ({result.message}); name fewer limits")
        parts = np.split(result.x, self.starts[1:-1])
        return tuple(int(part.argmax()) for part in parts)
