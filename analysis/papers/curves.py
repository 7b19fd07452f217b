"""Curves of a paper: the mean of the tasks against what is dropped, a panel for each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.drawing import canvas, render, style
from analysis.inference import Z95
from analysis.palette import LIGHT, NEUTRAL
from analysis.papers.filling import Cell, Filled

SIZE = 8.0
"""Points of all letters, so that a panel can be printed at the width of a column."""
_WIDTH, _HEIGHT = 3.4, 2.5
_LINES = ("-", (0, (1, 1.2)), "--", "-.")
_MARKS = ("o", "s", "^", "D")


def curves(blocks: Sequence[Filled], x: str) -> dict[str, bytes]:
    """Return the figure as PDF, SVG and PNG; empty where nothing was measured.

    Args:
        blocks: models with the points of all series, filled.
        x: words on the horizontal axis.
    """
    drawn = [filled for filled in blocks if any(row.record is not None for row in filled.rows)]
    if not drawn:
        return {}
    with style():
        figure = canvas(_WIDTH * len(drawn), _HEIGHT)
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, filled in zip(panels, drawn, strict=True):
            _panel(axes, filled, x)
        return render(figure)


def series_of(filled: Filled) -> dict[str, list[tuple[float, Cell]]]:
    """Return the measured points of each series by its label, from left to right; the uncompressed model begins each."""
    column = filled.block.mean(paper=False)
    name = column.name if column else ""
    base: list[tuple[float, Cell]] = []
    found: dict[str, list[tuple[float, Cell]]] = {}
    for row in filled.rows:
        cell = row.cells.get(name, Cell())
        if cell.ours is None or row.line.x is None:
            continue
        if row.line.method is None:
            base.append((row.line.x, cell))
        else:
            found.setdefault(row.line.label, []).append((row.line.x, cell))
    return {label: sorted([*base, *points], key=lambda point: point[0]) for label, points in found.items()}


def _panel(axes: Any, filled: Filled, x: str) -> None:
    for place, (label, points) in enumerate(series_of(filled).items()):
        axes.errorbar(
            [at for at, _ in points],
            [cell.ours for _, cell in points],
            yerr=[Z95 * (cell.error or 0.0) for _, cell in points],
            label=label,
            color=LIGHT[place % len(LIGHT)],
            ls=_LINES[place % len(_LINES)],
            marker=_MARKS[place % len(_MARKS)],
            ms=3.5,
            lw=1.2,
            elinewidth=0.7,
        )
    base = next((row for row in filled.rows if row.line.method is None), None)
    column = filled.block.mean(paper=False)
    top = base.cells.get(column.name, Cell()).ours if base is not None and column is not None else None
    if top is not None:
        axes.axhline(top, color=NEUTRAL, lw=0.8, ls=(0, (1, 1.5)), label="uncompressed")
    axes.set_title(f"{filled.block.title} ({filled.block.model})", fontsize=SIZE)
    axes.set_xlabel(x, fontsize=SIZE)
    axes.set_ylabel("mean accuracy, %", fontsize=SIZE)
    axes.tick_params(labelsize=SIZE)
    axes.legend(fontsize=SIZE, loc="lower left", handlelength=2.6)
