"""Experts of a model as maps of layers and experts, and how their scores are distributed.

Shape letters: L decoder layers, E routed experts of the layer with the most.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.drawing import canvas, render, style
from analysis.palette import NEUTRAL
from analysis.papers.ink import COLUMN, NOTHING, SCALE, bar_beside, dress, legend_below, map_of, stroke

Values = Sequence[Sequence[float] | None]
"""For each decoder layer a number of each expert; None where a layer has none."""
_MOST_BINS = 28
"""Bars of a histogram."""


def drop_maps(models: Mapping[str, Values], shares: Mapping[str, Sequence[float]]) -> dict[str, bytes]:
    """Return maps of which experts go at which share, as PDF, SVG and PNG; empty where there is no model.

    Args:
        models: by name, for each expert the smallest share at which it goes, in percent, above 100 where it never does.
        shares: by name, the shares that were tried, ascending, in percent.
    """
    if not models:
        return {}
    with style():
        import matplotlib
        from matplotlib.colors import BoundaryNorm

        figure = canvas(COLUMN * len(models), 2.9)
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for axes, (name, values) in zip(panels, models.items(), strict=True):
            steps = [*shares[name], 101.0]
            colours = matplotlib.colormaps[SCALE].resampled(len(steps))
            shown = map_of(axes, grid_of(values), low=0, high=len(steps) - 1, colours=colours)
            shown.set_norm(BoundaryNorm([*(step - 0.01 for step in steps), 102.0], len(steps)))
            bar = bar_beside(figure, shown, axes, "goes when … % of the experts go")
            bar.set_ticks(_middles(steps), labels=[*(f"{step:.3g}" for step in shares[name]), "stays"])
            bar.ax.minorticks_off()
            bar.ax.tick_params(length=0)
            _whole_ticks(axes)
            dress(axes, title=name, x="expert", y="decoder layer")
        return render(figure)


def _middles(steps: Sequence[float]) -> list[float]:
    """Return the middle of each interval of colours."""
    ends = [*(step - 0.01 for step in steps), 102.0]
    return [(low + high) / 2 for low, high in itertools.pairwise(ends)]


def score_histograms(models: Mapping[str, Values], shares: Mapping[str, Sequence[float]], x: str) -> dict[str, bytes]:
    """Return how scores are distributed over all experts, coloured by the share at which they go, as PDF, SVG and PNG.

    Args:
        models: by name, the score of each expert.
        shares: by name, the shares at which the colour changes, ascending, in percent.
        x: words on the horizontal axis.
    """
    if not models:
        return {}
    with style():
        import matplotlib

        figure = canvas(COLUMN * len(models), 2.6)
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        last = max((share for one in shares.values() for share in one), default=100.0)
        for axes, (name, values) in zip(panels, models.items(), strict=True):
            parts = by_share([value for layer in values if layer is not None for value in layer], shares[name])
            starts = [0.0, *shares[name]]
            colours = [matplotlib.colormaps[SCALE](min(start / last, 1.0)) for start in starts]
            every = [value for part in parts for value in part]
            bins = min(_MOST_BINS, round(2 * len(every) ** 0.5))
            axes.hist(
                parts,
                bins=np.linspace(0.0, max(every), bins + 1),
                stacked=True,
                color=colours,
                edgecolor=NEUTRAL,
                linewidth=0.4,
                label=_bands(shares[name]),
            )
            dress(axes, title=name, x=x, y="experts")
        legend_below(figure, panels)
        return render(figure)


def _bands(shares: Sequence[float]) -> list[str]:
    """Return what the colours of a histogram stand for."""
    ends = [f"{share:.3g}" for share in shares]
    between = [f"{low} to {high} %" for low, high in itertools.pairwise(ends)]
    return [f"first {ends[0]} % to go", *between, f"last {100 - shares[-1]:.3g} %"] if ends else ["all experts"]


def by_share(values: Sequence[float], shares: Sequence[float]) -> list[list[float]]:
    """Return scores in ascending order, cut where each share of them ends; the last part is what remains.

    Args:
        values: scores of all experts.
        shares: in percent, ascending.
    """
    ordered = sorted(values)
    cuts = [0, *(round(len(ordered) * share / 100) for share in shares), len(ordered)]
    return [ordered[start:stop] for start, stop in itertools.pairwise(cuts)]


def importance_maps(models: Mapping[str, Values], words: str) -> dict[str, bytes]:
    """Return the importance of layers above that of experts, a column of panels for each model, as PDF, SVG and PNG.

    The importance of a layer is the sum over its experts, as a share of that of all layers; on the map each layer is
    divided by its largest value.

    Args:
        models: by name, the importance of each expert.
        words: what importance is, with its unit.
    """
    if not models:
        return {}
    with style():
        figure = canvas(COLUMN * len(models), 4.4)
        panels = figure.subplots(2, len(models), squeeze=False, height_ratios=(1, 1.5))
        for place, (name, values) in enumerate(models.items()):
            above, below = panels[:, place]
            sums = {layer: sum(row) for layer, row in enumerate(values) if row is not None}
            whole = sum(sums.values())
            above.plot(list(sums), [100 * value / whole for value in sums.values()], **stroke(0, points=len(sums)))
            above.set_ylim(bottom=0.0)
            dress(above, title=name, x="decoder layer", y="sum over experts,\n% of all layers", whole=True)
            shown = map_of(below, grid_of(values, relative=True), low=0.0, high=1.0)
            bar_beside(figure, shown, below, f"{words},\nshare of the layer's largest")
            _whole_ticks(below)
            dress(below, x="expert", y="decoder layer")
        return render(figure)


def grid_of(values: Values, relative: bool = False) -> Any:
    """Return the map of layers and experts, shape (L, E), with NaN where there is no expert.

    Args:
        values: of each expert.
        relative: whether each layer is divided by its largest value.
    """
    width = max(len(row) for row in values if row is not None)
    grid_LE = np.full((len(values), width), np.nan)
    for layer, row in enumerate(values):
        if row is not None:
            most = max(map(abs, row)) if relative else 1.0
            grid_LE[layer, : len(row)] = np.asarray(row) / (most or 1.0)
    return grid_LE


def _whole_ticks(axes: Any) -> None:
    """Put numbers of experts and layers at whole places alone."""
    from matplotlib.ticker import MaxNLocator

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    axes.set_facecolor(NOTHING)
