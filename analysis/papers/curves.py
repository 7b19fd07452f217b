"""Curves of a paper: the mean of the tasks, and the loss on running text, against what is dropped, for each model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.drawing import apart, canvas, label_ends, render, style
from analysis.inference import Z95
from analysis.palette import LIGHT, NEUTRAL
from analysis.papers.filling import Cell, Filled, series_of_column
from analysis.papers.sheet import Column

SIZE = 8.0
"""Points of all letters, so that a panel can be printed at the width of a column."""
WIDTH, HEIGHT = 3.5, 2.8
"""Inches of a panel."""
LINES = ("-", (0, (1, 1.2)), "--", "-.")
MARKS = ("o", "s", "^", "D")
"""Dashes and markers tell series apart where there is no colour."""
_UNCOMPRESSED = "uncompressed"
_GUESS = "random guess"


@dataclass(frozen=True)
class Panel:
    """What one panel of a curve shows.

    Args:
        title: above it.
        lines: points of each series from left to right: place, value, standard error.
        levels: horizontal lines by what they are called.
        y: words on the vertical axis, with the unit.
    """

    title: str
    lines: Mapping[str, Sequence[tuple[float, float, float]]]
    levels: Mapping[str, float]
    y: str


def curves(blocks: Sequence[Filled], x: str) -> dict[str, bytes]:
    """Return the figure as PDF, SVG and PNG; empty where nothing was measured.

    Args:
        blocks: models with the points of all series, filled.
        x: words on the horizontal axis.
    """
    drawn = [filled for filled in blocks if any(row.record is not None for row in filled.rows)]
    if not drawn:
        return {}
    shown = [panel for filled in drawn for panel in panels_of(filled)]
    with style():
        figure = canvas(WIDTH * len(shown), HEIGHT)
        for axes, panel in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            label_ends(axes, _drawn(axes, panel, x), SIZE)
        return render(figure)


def panels_of(filled: Filled) -> list[Panel]:
    """Return what is drawn of a model: the mean of its tasks, then the loss on each running text that was scored."""
    block = filled.block
    found = []
    if (mean := block.mean(paper=False)) is not None:
        words = f"mean accuracy of {len(mean.of)} tasks, %"
        found.append(_panel(filled, mean, words, {} if block.chance is None else {_GUESS: block.chance}))
    for column in block.columns:
        if column.kind == "perplexity":
            found.append(_panel(filled, column, f"{column.task}, loss in nats per word", {}))
    return found


def _panel(filled: Filled, column: Column, y: str, levels: Mapping[str, float]) -> Panel:
    """Return the panel of one column; of a perplexity the logarithm is shown, which is the loss of a word.

    Args:
        filled: the points of one model.
        column: that is shown.
        y: words on the vertical axis.
        levels: horizontal lines beside that of the uncompressed model.
    """
    lines = {
        label: [(at, *_shown(cell, column)) for at, cell in points]
        for label, points in series_of_column(filled, column.name).items()
    }
    base = next((row for row in filled.rows if row.line.method is None), None)
    cell = Cell() if base is None else base.cells.get(column.name, Cell())
    top = {} if cell.ours is None else {_UNCOMPRESSED: _shown(cell, column)[0]}
    return Panel(f"{filled.block.title} ({filled.block.model})", lines, {**top, **levels}, y)


def _shown(cell: Cell, column: Column) -> tuple[float, float]:
    """Return the value of a cell and its standard error, as they are drawn."""
    value, error = float(cell.ours or 0.0), cell.error or 0.0
    return (math.log(value), error / value) if column.kind == "perplexity" else (value, error)


def _drawn(axes: Any, panel: Panel, x: str) -> list[tuple[str, float, float, str]]:
    """Draw one panel and return what is written beside it: text, place and colour.

    Args:
        axes: to draw in.
        panel: what is drawn.
        x: words on the horizontal axis.
    """
    last = max((points[-1][0] for points in panel.lines.values()), default=0.0)
    ends = []
    for place, (label, points) in enumerate(panel.lines.items()):
        colour = LIGHT[place % len(LIGHT)]
        # Points of the same place lie beside each other, so that no bar hides another; all begin at the same one.
        places = [at + apart(place, len(panel.lines), last / 2) * (at > 0) for at, _, _ in points]
        axes.errorbar(
            places,
            [value for _, value, _ in points],
            yerr=[Z95 * error for _, _, error in points],
            color=colour,
            ls=LINES[place % len(LINES)],
            marker=MARKS[place % len(MARKS)],
            ms=3.5,
            lw=1.2,
            elinewidth=0.7,
        )
        ends.append((label, places[-1], points[-1][1], colour))
    for text, level in panel.levels.items():
        axes.axhline(level, color=NEUTRAL, lw=0.8, ls=(0, (1, 1.5)))
        ends.append((text, last, level, NEUTRAL))
    dressed(axes, panel.title, x, panel.y)
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
