"""What the plots of a paper have in common: one size of letters, lines that differ in grey, and one legend below all panels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from analysis.palette import LIGHT

SIZE = 8.0
"""Points of all letters, so that a panel can be printed at the width of a column."""
COLUMN = 3.4
"""Inches of a column; a figure over both is twice as wide."""
LINES: tuple[Any, ...] = ("-", (0, (1, 1.2)), "--", "-.", (0, (4, 1.2, 1, 1.2, 1, 1.2)))
MARKS = ("o", "s", "^", "D", "v")
SIZES = (5.5, 3.5, 2.8, 2.2)
"""Points of the markers of each line; the last counts for all further ones."""
MANY = 12
"""Points of a line from which on its markers are small."""
SCALE = "cividis"
"""Colours that grow lighter evenly, also in grey."""
NOTHING = "#d9d9d9"
"""Ground of a map where there is nothing to show."""


def stroke(place: int, points: int = 0) -> Mapping[str, Any]:
    """Return how the line of a place is drawn: colour, dashes and marker differ, so that grey tells them apart, too.

    Markers grow smaller from line to line and the first are hollow, so that lines which coincide are all seen; those of a
    line of many ``points`` are all small, so that they do not run into each other.
    """
    sizes = SIZES if points <= MANY else SIZES[-1:]
    return {
        "color": LIGHT[place % len(LIGHT)],
        "ls": LINES[place % len(LINES)],
        "marker": MARKS[place % len(MARKS)],
        "ms": sizes[min(place, len(sizes) - 1)],
        "mfc": "none" if place == 0 else LIGHT[place % len(LIGHT)],
        "mew": 0.8,
        "lw": 1.2,
    }


def dress(axes: Any, *, title: str = "", x: str = "", y: str = "", whole: bool = False) -> None:
    """Write the words of a panel, all in one size.

    Args:
        axes: the panel.
        title: above it.
        x: words on the horizontal axis, with the unit.
        y: words on the vertical axis, with the unit.
        whole: whether places on the horizontal axis are whole numbers.
    """
    if title:
        axes.set_title(title, fontsize=SIZE)
    if x:
        axes.set_xlabel(x, fontsize=SIZE)
    if y:
        axes.set_ylabel(y, fontsize=SIZE)
    axes.tick_params(labelsize=SIZE)
    if whole:
        from matplotlib.ticker import MaxNLocator

        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))


def legend_below(figure: Any, panels: Sequence[Any]) -> None:
    """Write one legend below all panels; a label that several panels have stands there once.

    Args:
        figure: that the panels lie in.
        panels: whose lines have labels.
    """
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        widths = [0.65 + 0.06 * len(label) for label in found]
        room = figure.get_figwidth()
        across = len(found) if sum(widths) < room else max(1, int(room / max(widths)))
        figure.legend(
            list(found.values()),
            list(found),
            loc="outside lower center",
            ncols=across,
            fontsize=SIZE,
            handlelength=2.8,
            columnspacing=1.5,
        )


def map_of(axes: Any, values: Any, *, low: float, high: float, colours: Any = SCALE) -> Any:
    """Draw a matrix as a map with row 0 at the bottom; what is not a number stays grey.

    Args:
        axes: the panel.
        values: the matrix.
        low: value of the darkest colour.
        high: value of the lightest colour.
        colours: name of a scale, or a scale.

    Returns:
        What a colour bar is made for.
    """
    axes.set_facecolor(NOTHING)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes.imshow(
        values, cmap=colours, vmin=low, vmax=high, interpolation="nearest", origin="lower", aspect="auto"
    )


def bar_beside(figure: Any, shown: Any, axes: Any, words: str) -> Any:
    """Draw the scale of colours beside panels, with its unit.

    Args:
        figure: that the panels lie in.
        shown: what ``map_of`` returned.
        axes: the panel, or several.
        words: what the colours stand for.
    """
    bar = figure.colorbar(shown, ax=axes, fraction=0.05, pad=0.03)
    bar.ax.tick_params(labelsize=SIZE)
    bar.outline.set_visible(False)
    bar.set_label(words, fontsize=SIZE)
    return bar
