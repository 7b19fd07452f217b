"""First points of a search: all units alike, shapes over the depth, and the best plans of the score table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import Field

from bench.settings.strict import Extended
from methods.framework.errors import RefusedError
from sweeps.budget import Limits
from sweeps.planner import LayerPlanner, prefix
from sweeps.samplers.moves import MANY, shapes
from sweeps.scoring import Named, Scoring
from sweeps.solving.limits import Limit
from sweeps.solving.solve import frontier, solve
from sweeps.solving.table import Table, write_table
from sweeps.space.dimension import Choice, Knots, Layers, Range
from sweeps.space.levels import Levels, LevelSpace
from sweeps.space.step import SearchStep

if TYPE_CHECKING:
    from optuna import Study

TABLE = "table.json"
_FEWEST = 2
"""Options of a unit that a table needs at least, beside the largest."""


class Starts(Extended):
    """What a search of layers begins with."""

    later: ClassVar[tuple[str, ...]] = ("studies", "shapes")

    alike: bool = Field(default=True, description="all layers alike, on the budget")
    table: bool = Field(
        default=True, description="measure each option of each layer alone, and start from the best plans of that table"
    )
    shapes: bool | None = Field(
        default=None,
        description="ten shapes over the depth are tried; null: in place of the table, where there are 12 units or more and "
        "two options of each would take more than half of `trials`",
    )
    best: int = Field(
        default=8, ge=1, description="plans of the table that are tried; without a budget, points of its frontier"
    )
    studies: tuple[str, ...] | None = Field(
        default=None,
        description="earlier studies of the same space, by name or folder: `best` plans of each, on this budget",
    )

    def settled(self, units: int, trials: int) -> Starts:
        """Return the settings with ``shapes`` true or false, and with no table where shapes take its place.

        Args:
            units: that choose for themselves.
            trials: of the search.
        """
        if self.shapes is not None:
            return self
        instead = self.table and units >= MANY and 2 * _FEWEST * units > trials
        return self.model_copy(update={"table": self.table and not instead, "shapes": instead})


def usual_parameters(steps: Sequence[SearchStep]) -> dict[str, Any]:
    """Return a value for each knob that is searched and that all layers share: the method's default, or the middle."""
    found: dict[str, Any] = {}
    for number, step in enumerate(steps):
        for name, dimension in step.space.items():
            default = step.kind.model_fields[name].default
            start = f"{prefix(steps, number)}{name}"
            match dimension:
                case Choice():
                    found[start] = default if default in dimension.choices else dimension.choices[0]
                case Range():
                    value = min(max(default, dimension.low), dimension.high)
                    found[start] = int(value) if dimension.type == "int" else float(value)
                case Knots():
                    middle = (dimension.low + dimension.high) / 2
                    found |= {f"{start}.{index}": middle for index in range(dimension.knots)}
                case Layers():
                    continue
    return found


def alike(space: LevelSpace) -> Levels:
    """Return the assignment whose axes are all at the same part of their way up, on the limits.

    Raises:
        RefusedError: the smallest plan is above a limit.
    """
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if space.fits(_part(space, middle)) else (low, middle)
    part = 1.0 if space.fits(_part(space, 1.0)) else low
    levels_A = _part(space, part)
    if not space.fits(levels_A):
        return space.projected(levels_A.astype(float))
    return space.filled(levels_A, (space.highest * part).astype(np.float64)) if space.limits else levels_A


def _part(space: LevelSpace, part: float) -> Levels:
    levels: Levels = (space.highest * part + 1e-9).astype(int)
    return levels


def table_of(scoring: Scoring, named: Named, folder: Path) -> Table:
    """Return the score table, written where `moebench solve` finds it.

    Args:
        scoring: what has been measured.
        named: where it comes from.
        folder: of the study.
    """
    table = scoring.table(named)
    write_table(folder / TABLE, table)
    return table


def best_of(table: Table, limits: Limits, count: int) -> list[tuple[int, ...]]:
    """Return options of each unit: the best plans within the limits; without limits, points of the frontier of bytes.

    Args:
        table: with damages.
        limits: budgets.
        count: plans wanted.

    Raises:
        RefusedError: no plan of the table meets the limits.
    """
    if limits.limits:
        asked = [Limit(name, None, int(amount), f"{name}={int(amount)}") for name, amount in limits.limits.items()]
        return [one.levels for one in solve(table, asked, count).solutions]
    return [one.levels for one in frontier(table, "bytes", count).solutions]


def enqueue_starts(
    study: Study, settings: Starts, planner: LayerPlanner, scoring: Scoring | None, named: Named, folder: Path
) -> None:
    """Put the first points into the queue of the study; those that are there already are not put again.

    Args:
        study: the study.
        settings: which points, settled.
        planner: plans of the space.
        scoring: measured cells; None: no table.
        named: where the table comes from.
        folder: of the study.
    """
    usual = usual_parameters(planner.steps)
    space = planner.space(usual)
    points: list[tuple[str, Levels]] = []
    if settings.alike:
        points.append(("alike", alike(space)))
    if settings.shapes:
        points += [(f"shape {place}", levels_A) for place, levels_A in enumerate(shapes(space), start=1)]
    if scoring is not None:
        try:
            found = best_of(table_of(scoring, named, folder), planner.limits, settings.best)
        except RefusedError:
            found = []  # a budget that only projection of larger draws meets
        points += [(f"table {place}", scoring.levels(options)) for place, options in enumerate(found, start=1)]
    for start, levels_A in points:
        parameters = usual | {axis.name: int(level) for axis, level in zip(space.axes, levels_A, strict=True)}
        study.enqueue_trial(parameters, user_attrs={"start": start}, skip_if_exists=True)


def sought(objectives: Mapping[str, Any]) -> str | None:
    """Return the label of the first objective that is measured, not counted; None where all are sizes."""
    return next((label for label, one in objectives.items() if one.kind != "size"), None)
