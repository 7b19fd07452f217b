"""How much faster compressed models generate, by the length of prompt and answer; a panel for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis.drawing import canvas, render, style
from analysis.palette import NEUTRAL
from analysis.papers.ink import COLUMN, dress, legend_below, stroke


class Ratio(NamedTuple):
    """Decode speed over that of the uncompressed model at one length: median over pairs, ends of its 95 % interval, marks."""

    length: int
    median: float
    low: float
    high: float
    pairs: int
    marks: Sequence[str] = ()


_APART = 0.07
"""Doublings between the markers of two rows at the same length, so that their bars do not hide each other."""


def ends_of(points: Sequence[Ratio]) -> tuple[float, float]:
    """Return the ends of the vertical axis: all medians and 1, with as much room again, and no more of the intervals."""
    medians = [1.0, *(point.median for point in points)]
    room = max(max(medians) - min(medians), 0.1)
    low = max(min(point.low for point in points), min(medians) - room, 0.0)
    high = min(max(point.high for point in points), max(medians) + room)
    return min(low, min(medians) - 0.1 * room), max(high, max(medians) + 0.1 * room)


def speed_curves(models: Mapping[str, Mapping[str, Sequence[Ratio]]], x: str, y: str) -> dict[str, bytes]:
    """Return the figure as PDF, SVG and PNG; empty where nothing was timed.

    Args:
        models: by name, the ratios of each row by its label, from the shortest length on.
        x: words on the horizontal axis, whose steps are doublings.
        y: words on the vertical axis.
    """
    if not models:
        return {}
    with style():
        figure = canvas(COLUMN * len(models), 2.6)
        panels = figure.subplots(1, len(models), squeeze=False, sharey=True)[0]
        ends = ends_of([point for rows in models.values() for points in rows.values() for point in points])
        for axes, (name, rows) in zip(panels, models.items(), strict=True):
            for place, (label, points) in enumerate(rows.items()):
                axes.errorbar(
                    [point.length * 2 ** (_APART * (place - (len(rows) - 1) / 2)) for point in points],
                    [point.median for point in points],
                    yerr=[
                        [point.median - point.low for point in points],
                        [point.high - point.median for point in points],
                    ],
                    label=label,
                    elinewidth=0.7,
                    capsize=2,
                    **stroke(place),
                )
            axes.axhline(1.0, color=NEUTRAL, lw=0.8, ls=(0, (1, 1.5)), label="uncompressed")
            axes.set_xscale("log", base=2)
            axes.set_ylim(*ends)
            ticks = sorted({point.length for points in rows.values() for point in points})
            axes.set_xticks(ticks, [str(length) for length in ticks])
            axes.minorticks_off()
            dress(axes, title=name, x=x, y=y if axes is panels[0] else "")
        legend_below(figure, panels)
        return render(figure)
