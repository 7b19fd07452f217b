"""How alike experts are: matrices of some layers, the mean of every layer, and the matrix of all experts of a model.

Shape letters: E routed experts, A all experts of a model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from analysis.drawing import canvas, render, style
from analysis.formatting import fixed
from analysis.papers.ink import COLUMN, SIZE, bar_beside, dress, map_of, stroke

Matrix = Sequence[Sequence[float]]
_SHOWN = 4
"""Layers whose matrix is drawn."""
_FEW, _LINE = 12, 0.6
"""Layers up to which lines between them are as wide as that, in points; of more, they would hide the experts."""


def off_diagonal(matrix: Matrix) -> tuple[float, float, float]:
    """Return lowest, mean and highest similarity of two different experts."""
    value_EE = np.asarray(matrix)
    pairs = value_EE[np.triu_indices(len(value_EE), 1)]
    return float(pairs.min()), float(pairs.mean()), float(pairs.max())


def shown_layers(layers: Sequence[int]) -> list[int]:
    """Return the layers whose matrices are drawn: evenly spaced, the first and the last among them."""
    places = np.linspace(0, len(layers) - 1, min(_SHOWN, len(layers))).round().astype(int)
    return [layers[place] for place in dict.fromkeys(places.tolist())]


def likeness_maps(models: Mapping[str, Mapping[int, Matrix]], words: str) -> dict[str, bytes]:
    """Return, for each model, matrices of some layers and the mean of every layer, as PDF, SVG and PNG.

    Args:
        models: by name, the similarity of every two experts of each layer.
        words: what is compared, in short.
    """
    if not models:
        return {}
    with style():
        figure = canvas(2 * COLUMN, 0.5 + 1.5 * len(models))
        panels = figure.subplots(
            len(models), _SHOWN + 1, squeeze=False, width_ratios=(*(1.0,) * _SHOWN, 1.5), gridspec_kw={"wspace": 0.05}
        )
        shown: Any = None
        low, high = _ends(models)
        for line, (name, layers) in zip(panels, models.items(), strict=True):
            chosen = shown_layers(sorted(layers))
            for axes in line[len(chosen) : _SHOWN]:
                axes.set_visible(False)
            for axes, layer in zip(line, chosen, strict=False):
                shown = map_of(axes, _without_diagonal(layers[layer]), low=low, high=high)
                axes.set_box_aspect(1)
                last = len(layers[layer]) - 1
                axes.set_xticks([0, last])
                axes.set_yticks([0, last] if axes is line[0] else [])
                dress(axes, title=f"layer {layer}\nmean {fixed(off_diagonal(layers[layer])[1], 2)}")
            dress(line[0], y="\n".join((*name.split(" (", 1), "expert")).replace(")", ""))
            _means(line[-1], layers, words)
        for axes in panels[-1][:_SHOWN]:
            axes.set_xlabel("expert", fontsize=SIZE)
        panels[-1][-1].set_xlabel("decoder layer", fontsize=SIZE)
        bar_beside(figure, shown, list(panels[:, :_SHOWN].flat), words)
        return render(figure)


def _ends(models: Mapping[str, Mapping[int, Matrix]]) -> tuple[float, float]:
    """Return the ends of the scale of colours: whole tenths around all values."""
    ends = [off_diagonal(matrix) for layers in models.values() for matrix in layers.values()]
    low, high = min(low for low, _, _ in ends), max(high for _, _, high in ends)
    return math.floor(10 * low) / 10, max(math.ceil(10 * high), math.floor(10 * low) + 1) / 10


def _means(axes: Any, layers: Mapping[int, Matrix], words: str) -> None:
    """Draw the mean over pairs of each layer, and lowest to highest as a band.

    Args:
        axes: the panel.
        layers: the matrix of each layer.
        words: what is compared, in short.
    """
    places = sorted(layers)
    ends = [off_diagonal(layers[layer]) for layer in places]
    axes.fill_between(places, [low for low, _, _ in ends], [high for _, _, high in ends], color="#bbbbbb", lw=0)
    axes.plot(places, [mean for _, mean, _ in ends], **stroke(0, points=len(places)))
    axes.set_ylim(0.0, 1.0)
    dress(axes, title="mean and range", y=words, whole=True)


def across_maps(models: Mapping[str, tuple[Sequence[int], Matrix]], words: str) -> dict[str, bytes]:
    """Return the similarity of every two experts of a model, layer by layer, a panel for each model, as PDF, SVG and PNG.

    Args:
        models: by name, the layer of each expert and the matrix of all experts.
        words: what is compared, in short.
    """
    if not models:
        return {}
    with style():
        figure = canvas(COLUMN * len(models), 3.0)
        panels = figure.subplots(1, len(models), squeeze=False)[0]
        for axes, (name, (layers, matrix)) in zip(panels, models.items(), strict=True):
            value_AA = _without_diagonal(matrix)
            shown = map_of(axes, value_AA, low=float(np.nanmin(value_AA)), high=float(np.nanmax(value_AA)))
            axes.set_box_aspect(1)
            starts = [place for place, layer in enumerate(layers) if place == 0 or layers[place - 1] != layer]
            middles = [(a + b - 1) / 2 for a, b in zip(starts, [*starts[1:], len(layers)], strict=True)]
            every = -(-len(starts) // 8)
            for axis in (axes.set_xticks, axes.set_yticks):
                axis(middles[::every], [str(layers[start]) for start in starts[::every]])
            width = _LINE if len(starts) <= _FEW else _LINE / 4
            for start in starts[1:]:
                axes.axhline(start - 0.5, color="white", lw=width)
                axes.axvline(start - 0.5, color="white", lw=width)
            bar_beside(figure, shown, axes, words)
            dress(axes, title=name, x="experts by decoder layer", y="experts by decoder layer")
        return render(figure)


def _without_diagonal(matrix: Matrix) -> Any:
    value_EE = np.asarray(matrix, dtype=float).copy()
    np.fill_diagonal(value_EE, np.nan)
    return value_EE
