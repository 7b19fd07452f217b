"""The whole frontier: for every limit the least damage, by dynamic programming over sizes.

f_u(c) = min over options o of unit u of f_(u-1)(c - s_o) + d_o, with sizes s counted in cells above the unit's smallest option.
A cell is the greatest common divisor of all sizes, which is exact, or else as large as the number of cells allows, with sizes
rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from sweeps.solving.problem import DamageRows, Floats, Ints, SizeRows, as_damages, as_sizes

Levels: TypeAlias = NDArray[np.unsignedinteger[Any]]
"""Indices of options."""
CELLS = 2**18
"""Most cells of the axis of sizes."""


@dataclass(frozen=True, slots=True)
class Frontier:
    """Assignments none of which is both as small and as good as another, sizes ascending, damages descending.

    Args:
        levels: option of each unit (P, U).
        sizes: sums of sizes (P,), exact.
        damages: sums of damages (P,), added in the order of the units.
        slack: 0 where these are all such assignments (of equal ones, one). Else the least damage within a limit B is at least
            that of the best of these within B + slack.
    """

    levels: Levels
    sizes: Ints
    damages: Floats
    slack: int


def frontier(damages: DamageRows, sizes: SizeRows, cells: int = CELLS) -> Frontier:
    """Return the frontier of a problem.

    Args:
        damages: of each option of each unit; finite, of any sign, in any order.
        sizes: of the same options; whole numbers.
        cells: of the axis of sizes; above it sizes are rounded.

    Raises:
        ValueError: as for ``knapsack.best``; more than 65,535 options of a unit.
    """
    damages_U = as_damages(damages)
    sizes_U = as_sizes(sizes, damages_U)
    if max(map(len, sizes_U)) >= 2**16:
        raise ValueError("a unit may have 65,535 options")
    above_U = [unit - unit.min() for unit in sizes_U]
    cell = _cell(above_U, cells)
    cells_U = [-(-unit // cell) for unit in above_U]
    slack = sum(int((rounded * cell - unit).max()) for rounded, unit in zip(cells_U, above_U, strict=True))
    least_C, choices_U = _least(cells_U, damages_U)
    before_C = np.concatenate([[np.inf], np.minimum.accumulate(least_C)[:-1]])
    levels = _traced(np.flatnonzero(least_C < before_C), choices_U, cells_U)
    return _sorted(levels, sizes_U, damages_U, slack)


def _cell(above_U: Sequence[Ints], cells: int) -> int:
    """Return the size of a cell: the common divisor of all, or one with which ``cells`` are enough."""
    divisor = max(1, math.gcd(*(int(size) for unit in above_U for size in unit)))
    span = sum(int(unit.max()) for unit in above_U)
    if span // divisor < cells:
        return divisor
    # Rounding up adds less than a cell for each unit.
    return -(-span // max(1, cells - 1 - len(above_U)))


def _least(cells_U: Sequence[Ints], damages_U: Sequence[Floats]) -> tuple[Floats, list[Levels]]:
    """Return the least damage of all units at each exact number of cells, and for each unit the option that gives it."""
    least_C = np.zeros(1)
    choices_U = []
    for cells_O, damages_O in zip(cells_U, damages_U, strict=True):
        length = len(least_C)
        found_C = np.full(length + int(cells_O.max()), np.inf)
        choice_C: Levels = np.zeros(len(found_C), np.uint16 if len(cells_O) > 256 else np.uint8)
        reached, better = np.empty(length), np.empty(length, np.bool_)
        for option in _useful(cells_O, damages_O):
            part = slice(int(cells_O[option]), int(cells_O[option]) + length)
            np.add(least_C, damages_O[option], out=reached)
            np.less(reached, found_C[part], out=better)
            np.copyto(found_C[part], reached, where=better)
            np.copyto(choice_C[part], option, where=better, casting="unsafe")
        least_C = found_C
        choices_U.append(choice_C)
    return least_C, choices_U


def _useful(cells_O: Ints, damages_O: Floats) -> list[int]:
    """Return the options that are better than every one that is no larger."""
    found: list[int] = []
    for option in np.lexsort((damages_O, cells_O)):
        if not found or damages_O[option] < damages_O[found[-1]]:
            found.append(int(option))
    return found


def _traced(places: NDArray[np.intp], choices_U: Sequence[Levels], cells_U: Sequence[Ints]) -> Levels:
    """Return the options that lead to each of ``places`` (P, U)."""
    levels: Levels = np.zeros((len(choices_U), len(places)), np.uint16)
    for unit in range(len(choices_U) - 1, -1, -1):
        levels[unit] = choices_U[unit][places]
        places = places - cells_U[unit][levels[unit]]
    return levels.T


def _sorted(levels: Levels, sizes_U: Sequence[Ints], damages_U: Sequence[Floats], slack: int) -> Frontier:
    """Return the points with their own sizes, without those that another one beats once sizes are exact."""
    sizes, damages = np.zeros(len(levels), np.int64), np.zeros(len(levels))
    for unit, (sizes_O, damages_O) in enumerate(zip(sizes_U, damages_U, strict=True)):
        sizes += sizes_O[levels[:, unit]]
        damages += damages_O[levels[:, unit]]
    order = np.lexsort((damages, sizes))
    before = np.concatenate([[np.inf], np.minimum.accumulate(damages[order])[:-1]])
    order = order[damages[order] < before]
    return Frontier(levels[order], sizes[order], damages[order], slack)
