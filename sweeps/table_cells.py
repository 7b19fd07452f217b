"""The score table: what each option of each unit costs in quality when it alone is chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.meter import Meter
from sweeps.planner import Drawn, LayerPlanner
from sweeps.space.levels import Levels, LevelSpace

MOST_TOGETHER = 64
"""Combinations of a unit that are each measured; of units with more, each axis alone, and damages are added up."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: a unit at one combination of levels, all others as large as they can be."""

    unit: int
    levels: tuple[int, ...]


class ScoreTable:
    """Cells of one space, measured on the resident model; each is kept by the meter, so that none is measured twice."""

    def __init__(self, planner: LayerPlanner, meter: Meter, parameters: Mapping[str, Any], label: str) -> None:
        """List the cells.

        Args:
            planner: plans of the space.
            meter: measures plans.
            parameters: of the knobs that all layers share.
            label: the objective that counts.
        """
        self.planner, self.meter, self.parameters, self.label = planner, meter, dict(parameters), label
        self.space: LevelSpace = planner.space(parameters)
        self.cells = list(self._cells())

    def value(self, levels_A: Levels) -> float:
        """Return the objective of an assignment."""
        return self.scored(self.planner.at(levels_A, self.parameters))

    def scored(self, drawn: Drawn) -> float:
        """Return the objective of a plan."""
        return self.meter.measured(drawn.plan, drawn.sizes, self.planner.limits.source).scores[self.label]

    def measure(self, worker: int, workers: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Measure every cell that is not known: those of this worker first, then what others have not done yet.

        Args:
            worker: number of this process.
            workers: of all.
            progress: called with the cells done and their number.
        """
        own = [cell for index, cell in enumerate(self.cells) if index % workers == worker]
        # From the end, so that workers who help each other meet late.
        others = [cell for index, cell in enumerate(self.cells) if index % workers != worker][::-1]
        for done, cell in enumerate([*own, *others], start=1):
            self.value(self.assignment(cell))
            if progress is not None:
                progress(done, len(self.cells))

    def damages(self) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
        """Return for each unit the damage of every combination of its axes' levels: objective less that of the whole.

        Infinite where there is no plan. Maximised objectives count negatively.
        """
        whole = self.value(self._largest())
        found = []
        for unit, own in enumerate(self.space.members):
            shape = tuple(int(self.space.highest[axis]) + 1 for axis in own)
            grid = np.full(shape, np.inf)
            measured = {c.levels: self.value(self.assignment(c)) - whole for c in self.cells if c.unit == unit}
            for levels in self.space.combinations(unit):
                grid[levels] = measured[levels] if levels in measured else self._added(measured, levels, shape)
            found.append(grid)
        return found

    def assignment(self, cell: Cell) -> Levels:
        """Return the levels of all axes for one cell."""
        levels_A = self._largest()
        levels_A[list(self.space.members[cell.unit])] = cell.levels
        return levels_A

    def _added(self, measured: Mapping[tuple[int, ...], float], levels: tuple[int, ...], shape: Sequence[int]) -> float:
        top = [extent - 1 for extent in shape]
        alone = [tuple(level if i == j else top[j] for j in range(len(top))) for i, level in enumerate(levels)]
        return float(sum(measured.get(one, 0.0) for one in alone))

    def _largest(self) -> Levels:
        return self.space.highest.copy()

    def _cells(self) -> Iterator[Cell]:
        for unit in range(len(self.space.units)):
            combinations = self.space.combinations(unit)
            top = tuple(int(self.space.highest[axis]) for axis in self.space.members[unit])
            if len(combinations) > MOST_TOGETHER:
                combinations = [one for one in combinations if sum(a != b for a, b in zip(one, top, strict=True)) <= 1]
            yield from (Cell(unit, levels) for levels in combinations if levels != top)
