"""Statistics of a model as a paper draws them: lines over its layers, or a map of every two places in its depth."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.drawing import canvas, label_ends, render, style
from analysis.palette import LIGHT
from analysis.papers.curves import HEIGHT, LINES, MARKS, SIZE, WIDTH, dressed
from bench.records.derived import csv_cell

Profile = Sequence[float | None]
Map = Sequence[Sequence[float]]
_ACROSS = 2
"""Panels beside each other."""


@dataclass(frozen=True)
class Panel:
    """One panel.

    Args:
        title: the model, and what is shown where panels differ in that.
        lines: values of each line by its label; None where a layer has none.
        matrix: values of every two places, in the place of lines.
    """

    title: str
    lines: Mapping[str, Profile]
    matrix: Map = ()


def scaled(values: Profile) -> list[float | None]:
    """Return ``values`` moved and stretched so that the smallest is 0 and the largest 1; all 0 where they are equal."""
    known = [value for value in values if value is not None]
    low, high = (min(known), max(known)) if known else (0.0, 0.0)
    width = high - low or 1.0
    return [None if value is None else (value - low) / width for value in values]


def profiles(panels: Sequence[Panel], x: str, y: str) -> dict[str, bytes]:
    """Return lines over the layers as PDF, SVG and PNG, two panels beside each other.

    Args:
        panels: with their lines.
        x: words on the horizontal axis.
        y: words on the vertical axis.
    """
    down = -(-len(panels) // _ACROSS)
    across = min(len(panels), _ACROSS)
    with style():
        figure = canvas(WIDTH * across, HEIGHT * down)
        places = figure.subplots(down, across, squeeze=False).flat
        for axes, panel in zip(places, panels, strict=False):
            ends = []
            for place, (label, values) in enumerate(panel.lines.items()):
                known = [(layer, value) for layer, value in enumerate(values) if value is not None]
                colour = LIGHT[place % len(LIGHT)]
                axes.plot(
                    [layer for layer, _ in known],
                    [value for _, value in known],
                    color=colour,
                    ls=LINES[place % len(LINES)],
                    marker=MARKS[place % len(MARKS)],
                    ms=3.5,
                    lw=1.2,
                )
                if known:
                    ends.append((label, float(known[-1][0]), known[-1][1], colour))
            dressed(axes, panel.title, x, y)
            label_ends(axes, ends, SIZE)
        for axes in list(places)[len(panels) :]:
            axes.set_visible(False)
        return render(figure)


def maps(panels: Sequence[Panel], x: str, y: str) -> dict[str, bytes]:
    """Return a map of every two places, each on a scale of its own, as PDF, SVG and PNG.

    Args:
        panels: with their matrices.
        x: words on both axes.
        y: words beside the scale of colours.
    """
    from matplotlib.ticker import MaxNLocator

    with style():
        figure = canvas(WIDTH * len(panels), HEIGHT)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            values_BB = np.asarray(panel.matrix, dtype=float)
            shown = axes.imshow(values_BB, cmap="cividis", interpolation="nearest", origin="lower")
            bar = figure.colorbar(shown, ax=axes, fraction=0.046, pad=0.03)
            bar.set_label(y, fontsize=SIZE)
            bar.ax.tick_params(labelsize=SIZE)
            bar.outline.set_visible(False)
            axes.grid(False)
            dressed(axes, panel.title, x, x)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        return render(figure)


def values_text(panels: Sequence[Panel]) -> str:
    """Return every number of a figure as CSV: its panel, its line or row, its layer or column."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["panel", "line", "layer", "value"])
    for panel in panels:
        rows: dict[str, Profile] = dict(panel.lines) or {str(place): row for place, row in enumerate(panel.matrix)}
        for label, values in rows.items():
            for layer, value in enumerate(values):
                text = "" if value is None else f"{value:.6g}"
                writer.writerow([csv_cell(panel.title), csv_cell(label), layer, text])
    return buffer.getvalue()
