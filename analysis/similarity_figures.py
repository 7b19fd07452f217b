"""Similarity of experts as heat maps: one panel a layer, all on one scale."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from analysis.drawing import canvas, short
from analysis.formatting import fixed, slug
from analysis.similarity import STATISTICS, Likeness, drawn_ones

_ACROSS = 6
"""Panels in a row."""


def similarity_figures(found: Sequence[Likeness]) -> dict[str, Any]:
    """Return one figure for each model and text by name; call it within ``drawing.style``."""
    chosen = drawn_ones(found)
    models = Counter(one.model for one in chosen)
    figures = {}
    for one in chosen:
        more = f"_{slug(one.corpus)}_{one.content[:8]}" if models[one.model] > 1 else ""
        figures[f"similarity_{slug(one.model)}{more}"] = similarity_figure(one)
    return figures


def similarity_figure(one: Likeness) -> Any:
    """Draw how alike every two experts are, a panel for each layer; 0 to 1, cosines from −1."""
    panels = list(one.matrices.items())
    across = min(_ACROSS, len(panels))
    down = -(-len(panels) // across)
    figure = canvas(1.0 + 1.75 * across, 0.75 + 1.95 * down)
    axes = figure.subplots(down, across, squeeze=False)
    signed = one.statistic == "output_cosine"
    shown: Any = None
    for panel, (layer, value_EE) in zip(axes.flat, panels, strict=False):
        off_EE = np.where(np.eye(len(value_EE), dtype=bool), np.nan, value_EE)
        shown = panel.imshow(
            off_EE,
            cmap="RdBu" if signed else "viridis",
            vmin=-1.0 if signed else 0.0,
            vmax=1.0,
            interpolation="nearest",
        )
        panel.set_title(f"layer {layer}: {fixed(one.layers[layer], 2)}", fontsize=8)
        panel.set_xticks([0, len(value_EE) - 1])
        panel.set_yticks([0, len(value_EE) - 1])
        panel.tick_params(length=0, labelsize=6.5)
        panel.grid(False)
        panel.spines[:].set_visible(False)
    for panel in list(axes.flat)[len(panels) :]:
        panel.set_visible(False)
    bar = figure.colorbar(shown, ax=list(axes.flat), fraction=0.03, pad=0.02)
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)
    figure.suptitle(
        f"{short(one.model)}: {STATISTICS[one.statistic]} of every two experts, mean {fixed(one.overall.value, 2)}",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    return figure
