"""Which decoder layers go when so many are dropped, as maps. Shape letters: L decoder layers, N numbers of dropped layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from analysis.drawing import canvas, render, style
from analysis.papers.ink import COLUMN, NOTHING, SIZE, dress, map_of

STAYS, GOES = "#f2d64b", "#a3201d"
"""Yellow and red, which differ in grey, too."""


@dataclass(frozen=True)
class Gone:
    """What a method drops of a model.

    Args:
        layers: decoder layers of the model.
        droppable: those that the method may drop.
        gone: layers that go, first at one dropped layer, then at two, and so on.
    """

    layers: int
    droppable: Sequence[int]
    gone: Sequence[Sequence[int]]


def depth_maps(found: Mapping[str, Mapping[str, Gone]], x: str) -> dict[str, bytes]:
    """Return a row of maps for each method, with a panel for each model, as PDF, SVG and PNG.

    Args:
        found: by method, then by model.
        x: words on the horizontal axis.
    """
    if not found:
        return {}
    models = list(dict.fromkeys(name for one in found.values() for name in one))
    with style():
        from matplotlib.colors import ListedColormap
        from matplotlib.patches import Patch

        figure = canvas(COLUMN * len(models), 0.4 + 2.0 * len(found))
        panels = figure.subplots(len(found), len(models), squeeze=False)
        for place, (label, of_method) in enumerate(found.items()):
            for axes, name in zip(panels[place], models, strict=True):
                if name not in of_method:
                    axes.set_visible(False)
                    continue
                map_NL = dropped_map(of_method[name])
                map_of(axes, map_NL, low=0.0, high=1.0, colours=ListedColormap([STAYS, GOES]))
                _cells(axes, *map_NL.shape)
                dress(axes, title=name if place == 0 else "", x=x, y=f"{label},\nnumber dropped")
        whole = all(len(one.droppable) == one.layers for of_method in found.values() for one in of_method.values())
        colours = {"stays": STAYS, "goes": GOES} | ({} if whole else {"has nothing to drop": NOTHING})
        handles = [Patch(facecolor=colour, label=text) for text, colour in colours.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=SIZE)
        return render(figure)


def dropped_map(one: Gone) -> Any:
    """Return the map, shape (N, L): 1 where a layer goes, 0 where it stays, NaN where there is nothing to drop."""
    map_NL = np.full((len(one.gone), one.layers), np.nan)
    map_NL[:, list(one.droppable)] = 0.0
    for row, layers in zip(map_NL, one.gone, strict=True):
        row[list(layers)] = 1.0
    return map_NL


def _cells(axes: Any, numbers: int, layers: int) -> None:
    """Draw thin lines between cells, and whole numbers at their middles.

    Args:
        axes: the panel.
        numbers: of dropped layers, from one on.
        layers: of the model.
    """
    across, down = (max(1, -(-count // 8)) for count in (layers, numbers))
    axes.set_xticks(range(0, layers, across), map(str, range(0, layers, across)))
    places = range(0, numbers, down)
    axes.set_yticks(places, [str(place + 1) for place in places])
    for place in range(1, layers):
        axes.axvline(place - 0.5, color="white", lw=0.4)
    for place in range(1, numbers):
        axes.axhline(place - 0.5, color="white", lw=0.4)
