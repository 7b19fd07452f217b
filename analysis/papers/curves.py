"""Curves of a paper: the mean of the tasks against what is dropped, a panel for each model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.drawing import apart, canvas, label_ends, render, style
from analysis.inference import Z95
from analysis.palette import LIGHT, NEUTRAL
from analysis.papers.filling import Cell, Filled, series_of_column

SIZE = 8.0
"""Points of all letters, so that a panel can be printed at the width of a column."""
WIDTH, HEIGHT = 3.5, 2.8
"""Inches of a panel."""
LINES = ("-", (0, (1, 1.2)), "--", "-.")
MARKS = ("o", "s", "^", "D")
"""Dashes and markers tell series apart where there is no colour."""
_UNCOMPRESSED = "uncompressed"
_GUESS = "random guess"


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
        figure = canvas(WIDTH * len(drawn), HEIGHT)
        panels = figure.subplots(1, len(drawn), squeeze=False)[0]
        for axes, filled in zip(panels, drawn, strict=True):
            label_ends(axes, _panel(axes, filled, x), SIZE)
        return render(figure)


def series_of(filled: Filled) -> dict[str, list[tuple[float, Cell]]]:
    """Return the measured points of each series by its label, from left to right; the uncompressed model begins each."""
    column = filled.block.mean(paper=False)
    return series_of_column(filled, column.name if column else "")


def _panel(axes: Any, filled: Filled, x: str) -> list[tuple[str, float, float, str]]:
    """Draw one model and return what is written beside it: text, place and colour."""
    lines = series_of(filled)
    last = max((points[-1][0] for points in lines.values()), default=0.0)
    ends = []
    for place, (label, points) in enumerate(lines.items()):
        colour = LIGHT[place % len(LIGHT)]
        # Points of the same place lie beside each other, so that no bar hides another; all begin at the same one.
        places = [at + apart(place, len(lines), last / 2) * (at > 0) for at, _ in points]
        axes.errorbar(
            places,
            [cell.ours for _, cell in points],
            yerr=[Z95 * (cell.error or 0.0) for _, cell in points],
            color=colour,
            ls=LINES[place % len(LINES)],
            marker=MARKS[place % len(MARKS)],
            ms=3.5,
            lw=1.2,
            elinewidth=0.7,
        )
        ends.append((label, places[-1], float(points[-1][1].ours or 0.0), colour))
    base = next((row for row in filled.rows if row.line.method is None), None)
    column = filled.block.mean(paper=False)
    top = base.cells.get(column.name, Cell()).ours if base is not None and column is not None else None
    for text, level in ((_UNCOMPRESSED, top), (_GUESS, filled.block.chance)):
        if level is not None:
            axes.axhline(level, color=NEUTRAL, lw=0.8, ls=(0, (1, 1.5)))
            ends.append((text, last, level, NEUTRAL))
    tasks = len(column.of) if column is not None else 0
    dressed(axes, f"{filled.block.title} ({filled.block.model})", x, f"mean accuracy of {tasks} tasks, %")
    return ends


def dressed(axes: Any, title: str, x: str, y: str) -> None:
    """Write title and axes in letters of one size, with ticks at whole numbers from left to right.

    Args:
        axes: drawn.
        title: of the panel.
        x: words on the horizontal axis.
        y: words on the vertical axis.
    """
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=SIZE)
    axes.set_xlabel(x, fontsize=SIZE)
    axes.set_ylabel(y, fontsize=SIZE)
    axes.tick_params(labelsize=SIZE)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
