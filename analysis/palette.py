"""Colours and markers: distinguishable with colour-blindness, on white and on dark ground.

The first seven are Okabe and Ito's without black and yellow, the others from Paul Tol's muted set; each with a lighter
twin for dark pages. A marker or a direct label always accompanies the colour.
"""

from __future__ import annotations

from collections.abc import Iterable

LIGHT = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#332288",
    "#56B4E9", "#882255", "#999933", "#44AA99", "#AA4499",
)  # fmt: skip
DARK = (
    "#4FA8E0", "#F08A4B", "#2FC79A", "#E3A0C6", "#F2B84B", "#A79BEF",
    "#8CCBF2", "#D9719C", "#C6C65A", "#6FD0BF", "#D583D5",
)  # fmt: skip
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h")
"""matplotlib's markers, one a method."""

SYMBOLS = ("circle", "square", "diamond", "triangle-up", "pentagon", "star", "cross", "hexagon", "x")
"""plotly's symbols, one a model."""

NEUTRAL = "#444444"


def places(names: Iterable[str]) -> dict[str, int]:
    """Give each name a place in the palette, by alphabet, so that a method keeps its colour within a plot."""
    return {name: place for place, name in enumerate(sorted(set(names)))}


def marker(place: int) -> str:
    """Return matplotlib's marker of a place; where colours begin anew, shapes go on by one, so that no pair repeats."""
    return MARKERS[(place + place // len(LIGHT)) % len(MARKERS)]
