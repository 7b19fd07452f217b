"""Labels beside points: each where it covers the least, in one fixed order, so that the same figure gets the same labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

_RADII = (7.0, 13.0, 22.0, 34.0, 48.0, 66.0)  # points from the marker to the nearest edge of its label
_ANGLES = tuple(math.radians(degrees) for degrees in (0, 30, -30, 60, -60, 180, 150, -150, 120, -120, 90, -90))


class Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    bottom: float
    right: float
    top: float

    def overlap(self, other: Box) -> float:
        """Return the area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.top, other.top) - max(self.bottom, other.bottom)
        return max(width, 0.0) * max(height, 0.0)

    def overlaps(self, others: NDArray[np.float64]) -> float:
        """Return the sum of ``overlap`` over rows of left, bottom, right, top."""
        width = np.minimum(self.right, others[:, 2]) - np.maximum(self.left, others[:, 0])
        height = np.minimum(self.top, others[:, 3]) - np.maximum(self.bottom, others[:, 1])
        return float((width.clip(0.0) * height.clip(0.0)).sum())


def label_points(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[str, float, float, str]],
    obstacles: Sequence[tuple[float, float]],
    size: float = 7.0,
) -> None:
    """Write each label (text, x, y, colour) near its point, with a thin line where it had to move away.

    Places are tried from near to far and the first with the least cover is taken: other labels count most, then leaving the
    axes, then ``obstacles``, in data coordinates.

    Args:
        figure: laid out once here; nothing that changes the layout may be added afterwards.
    """
    if not labels:
        return
    figure.draw_without_rendering()
    pixels = figure.dpi / 72
    inside = Box(*axes.get_window_extent().extents)
    points = [axes.transData.transform(point) for point in obstacles]
    half = 3.5 * pixels
    marks = np.asarray([(x - half, y - half, x + half, y + half) for x, y in points]).reshape(-1, 4)
    written: list[Box] = []
    for text, x, y, colour in labels:
        width, height = _extent(figure, text, size)
        at_x, at_y = axes.transData.transform((x, y))
        chosen, best = (0.0, 0.0), math.inf
        for place in ((r * pixels, angle) for r in _RADII for angle in _ANGLES):
            offset = _offset(place, width, height)
            box = _box(at_x + offset[0], at_y + offset[1], width, height)
            area = width * height
            cost = 20 * sum(box.overlap(other) for other in written) / area
            cost += 20 * (1 - box.overlap(inside) / area)
            cost += 4 * box.overlaps(marks) / area + place[0] / pixels / 60
            if cost < best - 1e-9:
                chosen, best = offset, cost
        written.append(_box(at_x + chosen[0], at_y + chosen[1], width, height))
        away = math.hypot(max(abs(chosen[0]) - width / 2, 0.0), max(abs(chosen[1]) - height / 2, 0.0)) > 9 * pixels
        axes.annotate(
            text,
            xy=(x, y),
            xytext=(chosen[0] / pixels, chosen[1] / pixels),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=colour,
            zorder=8,
            bbox={"boxstyle": "square,pad=0.05", "fc": "white", "ec": "none", "alpha": 0.7},
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 3} if away else None,
        )


def _extent(figure: Figure, text: str, size: float) -> tuple[float, float]:
    """Return width and height of ``text`` in pixels."""
    found = figure.text(0, 0, text, fontsize=size)
    canvas = cast("FigureCanvasAgg", figure.canvas)
    box = found.get_window_extent(canvas.get_renderer())  # type: ignore[no-untyped-call]  # matplotlib has no types here
    found.remove()
    return box.width + 2.0, box.height + 2.0


def _offset(place: tuple[float, float], width: float, height: float) -> tuple[float, float]:
    """Return the centre of a label whose edge lies ``place`` (distance, angle) away from its point."""
    radius, angle = place
    across, up = math.cos(angle), math.sin(angle)
    return (radius * across + width / 2 * round(across, 1), radius * up + height / 2 * round(up, 1))


def _box(x: float, y: float, width: float, height: float) -> Box:
    return Box(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
