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
        for axes, (name, rows) in zip(panels, models.items(), strict=True):
            for place, (label, points) in enumerate(rows.items()):
                axes.errorbar(
                    [point.length for point in points],
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
            ticks = sorted({point.length for points in rows.values() for point in points})
            axes.set_xticks(ticks, [str(length) for length in ticks])
            axes.minorticks_off()
            dress(axes, title=name, x=x, y=y if axes is panels[0] else "")
        legend_below(figure, panels)
        return render(figure)
