"""The score table: how much worse a model gets when one unit alone takes one of its options."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from methods.framework.errors import EvaluationError
from sweeps.meter import Meter
from sweeps.planner import LayerPlanner
from sweeps.solving.table import Option, Table, Unit
from sweeps.space.levels import Levels, LevelSpace

MOST_TOGETHER = 64
"""Combinations of a unit's axes that are all measured; of units with more, each axis alone, and their damages are added."""

Advance = Callable[[int, int], None]
"""Called with the measurements done and their number."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a unit at one combination of levels, all others as large as they can be."""

    unit: int
    levels: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Named:
    """What a table says about where it comes from.

    Args:
        study: name of the search.
        model: name of the source, as the user gave it.
        content: digest of the source.
    """

    study: str
    model: str
    content: str


def order(cells: int, worker: int, workers: int) -> list[int]:
    """Return the numbers of all cells as one worker goes through them: its own share, then the others' from the end.

    So two who help each other meet late.

    Args:
        cells: how many there are.
        worker: number of this process.
        workers: of all.
    """
    own = range(worker, cells, workers) if worker < workers else range(0)
    return [*own, *(number for number in reversed(range(cells)) if number not in own)]


class Scoring:
    """Cells of one space, measured on the resident model. The meter keeps each answer, so none is measured twice."""

    def __init__(
        self,
        planner: LayerPlanner,
        meter: Meter,
        parameters: Mapping[str, Any],
        label: str,
        direction: Literal["minimize", "maximize"] = "minimize",
    ) -> None:
        """List the cells.

        Args:
            planner: plans of the space.
            meter: measures plans.
            parameters: of the knobs that all layers share.
            label: the objective that counts.
            direction: of that objective.
        """
        self.planner, self.meter, self.parameters = planner, meter, dict(parameters)
        self.label, self.direction = label, direction
        self.space: LevelSpace = planner.space(parameters)
        self._combinations = [self._ascending(unit) for unit in range(len(self.space.units))]
        self.cells = list(self._cells())

    def value(self, levels_A: Levels) -> float:
        """Return the objective of an assignment; not a number where it cannot be measured."""
        drawn = self.planner.at(levels_A, self.parameters)
        try:
            return self.meter.measured(drawn.plan, drawn.sizes, self.planner.limits.source).scores[self.label]
        except EvaluationError:
            return math.nan

    def measure(self, worker: int = 0, workers: int = 1, advance: Advance = lambda done, number: None) -> None:
        """Measure every cell that is not known: this worker's share first, then what others have not done by then.

        Args:
            worker: number of this process.
            workers: of all.
            advance: called after each cell.
        """
        for done, number in enumerate(order(len(self.cells), worker, workers), start=1):
            self.value(self.assignment(self.cells[number]))
            advance(done, len(self.cells))

    def table(self, named: Named) -> Table:
        """Return the table, with the damages that are known or measured now."""
        space, menu = self.space, self.planner.menu(self.parameters)
        sign = -1.0 if self.direction == "maximize" else 1.0
        whole = self.value(space.highest)
        units = []
        for unit, combinations in enumerate(self._combinations):
            measured = {cell.levels: sign * (self.value(self.assignment(cell)) - whole) for cell in self._of(unit)}
            measured[self._top(unit)] = 0.0
            options = []
            for levels in combinations:
                layer, plan = menu.unit_plan(unit, levels)
                settings = {space.axes[a].name: space.axes[a].values[level] for a, level in self._placed(unit, levels)}
                sizes = {name: round(float(grids[unit][levels])) for name, grids in space.sizes.items()}
                damage = measured[levels] if levels in measured else self._added(measured, levels, unit)
                options.append(Option(settings=settings, plan=plan, sizes=sizes, damage=_finite(damage)))
            units.append(Unit(name=space.units[unit], layer=layer, options=tuple(options)))
        return Table(
            study=named.study,
            model=named.model,
            content=named.content,
            family=self.planner.inventory.family,
            objective=self.label,
            direction=self.direction,
            base=whole,
            source=dict(self.planner.limits.source),
            rest={name: round(value) for name, value in space.rest.items()},
            layers=menu.unchosen,
            units=tuple(units),
        )

    def levels(self, options: Sequence[int]) -> Levels:
        """Return the levels of all axes for one option of each unit, numbered as in the table."""
        levels_A = self.space.highest.copy()
        for unit, option in enumerate(options):
            levels_A[list(self.space.members[unit])] = self._combinations[unit][option]
        return levels_A

    def assignment(self, cell: Cell) -> Levels:
        """Return the levels of all axes for one cell."""
        levels_A = self.space.highest.copy()
        levels_A[list(self.space.members[cell.unit])] = cell.levels
        return levels_A

    def _ascending(self, unit: int) -> list[tuple[int, ...]]:
        """Return the combinations of a unit from small to large."""
        size = self.space.sizes["bytes"][unit]
        return sorted(self.space.combinations(unit), key=lambda levels: (size[levels], levels))

    def _top(self, unit: int) -> tuple[int, ...]:
        return tuple(int(self.space.highest[axis]) for axis in self.space.members[unit])

    def _placed(self, unit: int, levels: Sequence[int]) -> list[tuple[int, int]]:
        return list(zip(self.space.members[unit], levels, strict=True))

    def _of(self, unit: int) -> list[Cell]:
        return [cell for cell in self.cells if cell.unit == unit]

    def _added(self, measured: Mapping[tuple[int, ...], float], levels: tuple[int, ...], unit: int) -> float:
        """Return the sum of the damages of each axis alone."""
        top = self._top(unit)
        alone = [(*top[:axis], level, *top[axis + 1 :]) for axis, level in enumerate(levels)]
        return float(np.sum([measured.get(one, math.nan) for one in alone]))

    def _cells(self) -> Iterator[Cell]:
        for unit, combinations in enumerate(self._combinations):
            top = self._top(unit)
            if len(combinations) > MOST_TOGETHER:
                combinations = [one for one in combinations if sum(a != b for a, b in zip(one, top, strict=True)) <= 1]
            yield from (Cell(unit, levels) for levels in combinations if levels != top)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
