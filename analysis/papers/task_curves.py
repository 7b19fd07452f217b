"""Curves of every task against what is dropped: a panel for each task, a row of panels or more for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.drawing import canvas, render, style
from analysis.inference import Z95
from analysis.palette import NEUTRAL
from analysis.papers.filling import Cell, Filled, series_of_column
from analysis.papers.ink import COLUMN, SIZES, dress, legend_below, stroke
from analysis.papers.sheet import Column

_ACROSS = 4
"""Panels in a row."""
_HEIGHT = 1.35
"""Inches of a row of panels."""


def task_curves(blocks: Sequence[Filled], x: str, chance: Mapping[str, float]) -> dict[str, bytes]:
    """Return the figure as PDF, SVG and PNG; empty where nothing was measured.

    Args:
        blocks: models with the points of all series, filled.
        x: words on the horizontal axis.
        chance: percent that guessing gets right, by lm-eval task, where it is known.
    """
    drawn = [filled for filled in blocks if any(row.record is not None for row in filled.rows)]
    rows = [(filled, line) for filled in drawn for line in _rows(filled)]
    if not rows:
        return {}
    with style():
        figure = canvas(2 * COLUMN, 0.75 + _HEIGHT * len(rows))
        panels = figure.subplots(len(rows), _ACROSS, squeeze=False)
        for place, (filled, line) in enumerate(rows):
            last = place + 1 == len(rows) or rows[place + 1][0] is not filled
            low, high = _ends(filled)
            for axes in panels[place][len(line) :]:
                axes.set_visible(False)
            for axes, column in zip(panels[place], line, strict=False):
                _panel(axes, filled, column, chance.get(column.task))
                axes.set_ylim(low, high)
                dress(axes, title=column.title, x=x if last else "", whole=True)
            dress(panels[place][0], y=f"{filled.block.title}\naccuracy, %")
        legend_below(figure, [axes for line in panels for axes in line])
        return render(figure)


def _rows(filled: Filled) -> list[list[Column]]:
    """Return the columns of tasks, cut into rows of panels."""
    tasks = [column for column in filled.block.columns if column.kind == "task"]
    across = -(-len(tasks) // -(-len(tasks) // _ACROSS)) if tasks else 1
    return [tasks[start : start + across] for start in range(0, len(tasks), across)]


def _ends(filled: Filled) -> tuple[float, float]:
    """Return the ends of the vertical axis: those of all tasks, so that panels compare."""
    found = [cell for row in filled.rows for name, cell in row.cells.items() if _is_task(filled, name)]
    values = [(cell.ours, Z95 * (cell.error or 0.0)) for cell in found if cell.ours is not None]
    low = min(value - error for value, error in values)
    high = max(value + error for value, error in values)
    return max(0.0, 10 * math.floor(low / 10)), min(105.0, 10 * math.ceil(high / 10) + 5.0)


def _is_task(filled: Filled, name: str) -> bool:
    return any(column.name == name and column.kind == "task" for column in filled.block.columns)


def _panel(axes: Any, filled: Filled, column: Column, chance: float | None) -> None:
    for place, (label, points) in enumerate(series_of_column(filled, column.name).items()):
        axes.errorbar(
            [at for at, _ in points],
            [cell.ours for _, cell in points],
            yerr=[Z95 * (cell.error or 0.0) for _, cell in points],
            label=label,
            elinewidth=0.6,
            **{**stroke(place), "ms": 0.8 * SIZES[min(place, len(SIZES) - 1)]},
        )
    base = next((row.cells.get(column.name, Cell()).ours for row in filled.rows if row.line.method is None), None)
    if base is not None:
        axes.axhline(base, color=NEUTRAL, lw=0.8, ls=(0, (1, 1.5)), label="uncompressed")
    if chance is not None:
        axes.axhline(chance, color=NEUTRAL, lw=0.8, ls=(0, (5, 2)), label="guessing")
