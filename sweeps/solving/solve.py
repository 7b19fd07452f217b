"""Solutions of a table: the best plans within budgets, and the frontier of one quantity."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from methods.framework.errors import RefusedError
from sweeps.solving import curve
from sweeps.solving.knapsack import best
from sweeps.solving.limits import Limit
from sweeps.solving.problem import LARGEST
from sweeps.solving.several import best_within
from sweeps.solving.table import Sizes, Table


@dataclass(frozen=True, slots=True)
class Solution:
    """One option for each unit of a table.

    Args:
        levels: index of the option of each unit.
        damage: sum of the options' damages.
        sizes: of the whole model.
    """

    levels: tuple[int, ...]
    damage: float
    sizes: Sizes


@dataclass(frozen=True, slots=True)
class Solutions:
    """The best assignments of a table within budgets.

    Args:
        solutions: ascending in damage.
        gap: 0 where it is proved that there are none better; else by how much at most another one is better than the last.
    """

    solutions: tuple[Solution, ...]
    gap: float


@dataclass(frozen=True, slots=True)
class Curve:
    """Solutions none of which is both as small and as good as another, ascending in size.

    Args:
        quantity: the size that the axis is of.
        solutions: ascending in that size, descending in damage.
        slack: 0 where these are all. Else the least damage within any budget B is that of the best of these within B plus this.
    """

    quantity: str
    solutions: tuple[Solution, ...]
    slack: int


class _Scored:
    """The options of a table whose damage is known."""

    def __init__(self, table: Table) -> None:
        """Take the scored options; RefusedError names a unit that has none."""
        self.table = table
        self.levels = [
            [level for level, option in enumerate(unit.options) if option.damage is not None] for unit in table.units
        ]
        empty = [unit.name for unit, levels in zip(table.units, self.levels, strict=True) if not levels]
        if empty:
            raise RefusedError(
                f"no option of {empty[0]} has been measured ({len(empty)} of {len(table.units)} units): "
                "let `moebench sweep` finish the table"
            )
        self.damages = [
            [float(unit.options[level].damage or 0.0) for level in levels]
            for unit, levels in zip(table.units, self.levels, strict=True)
        ]

    def sizes(self, quantity: str) -> list[list[int]]:
        """Return the sizes of the scored options of each unit."""
        found = [
            [unit.options[level].sizes[quantity] for level in levels]
            for unit, levels in zip(self.table.units, self.levels, strict=True)
        ]
        if sum(max(map(abs, unit)) for unit in found) > LARGEST:
            raise RefusedError(f"{quantity} of this table are above {LARGEST}; limit another quantity")
        return found

    def solution(self, places: Sequence[int], damage: float) -> Solution:
        """Return the solution whose options are at ``places`` among the scored ones."""
        levels = tuple(own[place] for own, place in zip(self.levels, places, strict=True))
        return Solution(levels, damage, self.table.sizes(levels))


def solve(table: Table, limits: Sequence[Limit], count: int = 1) -> Solutions:
    """Return the ``count`` best assignments of a table that meet every limit.

    Options whose damage has not been measured are left out.

    Args:
        table: with damages.
        limits: at least one; of one quantity the smallest holds.
        count: solutions wanted.

    Raises:
        RefusedError: a limit is below the smallest plan (the message says the smallest share), no plan meets all of them, or a
            unit has no option with a damage.
    """
    scored = _Scored(table)
    tightest: dict[str, tuple[int, Limit]] = {}
    for limit in limits:
        amount = limit.of(table.source)
        if limit.quantity not in tightest or amount < tightest[limit.quantity][0]:
            tightest[limit.quantity] = (amount, limit)
    sizes = [scored.sizes(quantity) for quantity in tightest]
    for own, (amount, limit) in zip(sizes, tightest.values(), strict=True):
        _check(table, limit, amount, table.rest[limit.quantity] + sum(map(min, own)))
    spaces = [amount - table.rest[limit.quantity] for amount, limit in tightest.values()]
    if len(spaces) == 1:
        ranking = best(scored.damages, sizes[0], spaces[0], count)
    else:
        try:
            ranking = best_within(scored.damages, sizes, spaces, count)
        except RefusedError as error:
            named = " and ".join(limit.text for _, limit in tightest.values())
            raise RefusedError(
                f"no plan of this table meets {named} together, though each alone; allow more of one"
            ) from error
    return Solutions(tuple(scored.solution(one.levels, one.damage) for one in ranking.assignments), ranking.gap)


def _check(table: Table, limit: Limit, amount: int, smallest: int) -> None:
    """Refuse a limit that no plan of the table meets, with what would do."""
    if smallest <= amount:
        return
    share = smallest / table.source[limit.quantity]
    enough = math.ceil(1000 * share) / 1000
    raise RefusedError(
        f"budget {limit.text} allows {amount:,} {limit.quantity}, but the smallest plan of this table has {smallest:,}, "
        f"a share of {share:.4g}; allow {limit.quantity}={enough:g} or more"
    )


def frontier(table: Table, quantity: str, points: int | None = None, cells: int = curve.CELLS) -> Curve:
    """Return the frontier of damage against one quantity.

    Args:
        table: with damages; options without are left out.
        quantity: one of the table's.
        points: at most as many, evenly spaced in size: of each step the best; None for all.
        cells: of the axis of sizes (see ``curve.frontier``).

    Raises:
        RefusedError: a unit has no option with a damage.
    """
    scored = _Scored(table)
    found = curve.frontier(scored.damages, scored.sizes(quantity), cells)
    places = np.arange(len(found.sizes))
    if points is not None and len(places) > points:
        steps = np.linspace(found.sizes[0], found.sizes[-1], points)
        places = np.unique(np.searchsorted(found.sizes, steps, side="right") - 1)
    rows = ((found.levels[place].tolist(), float(found.damages[place])) for place in places)
    return Curve(quantity, tuple(scored.solution(levels, damage) for levels, damage in rows), found.slack)
