"""The loss on running text against what is left of a model, a panel for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from analysis.drawing import canvas, render, style
from analysis.inference import Z95
from analysis.palette import NEUTRAL
from analysis.papers.ink import COLUMN, dress, legend_below, stroke

_MOST_TICKS = 8


class LossPoint(NamedTuple):
    """One model: how many experts are left in each layer, its loss in nats of a word, and the standard error of that."""

    x: float
    loss: float
    error: float | None


def loss_curves(models: Mapping[str, Mapping[str, Sequence[LossPoint]]], x: str, y: str) -> dict[str, bytes]:
    """Return the figure as PDF, SVG and PNG; empty where there is no point.

    Args:
        models: by name, the points of each series by its label, the uncompressed model first.
        x: words on the horizontal axis.
        y: words on the vertical axis, with the unit.
    """
    if not models:
        return {}
    with style():
        figure = canvas(COLUMN * len(models), 2.6)
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for axes, (name, series) in zip(panels, models.items(), strict=True):
            for place, (label, points) in enumerate(series.items()):
                axes.errorbar(
                    [point.x for point in points],
                    [point.loss for point in points],
                    yerr=[Z95 * (point.error or 0.0) for point in points],
                    label=label,
                    elinewidth=0.7,
                    **stroke(place),
                )
            whole = max((points[0] for points in series.values()), key=lambda point: point.x)
            axes.invert_xaxis()
            axes.set_xticks(_ticks({point.x for points in series.values() for point in points}))
            axes.axhline(whole.loss, color=NEUTRAL, lw=0.8, ls=(0, (1, 1.5)), label="uncompressed")
            dress(axes, title=name, x=x, y=y)
        legend_below(figure, panels)
        return render(figure)


def _ticks(places: set[float]) -> list[float]:
    """Return where numbers stand below the axis: at points alone, from the largest on, so many that they do not meet."""
    ordered = sorted(places, reverse=True)
    return ordered[:: -(-len(ordered) // _MOST_TICKS)]
