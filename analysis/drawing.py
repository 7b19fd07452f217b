"""The look of the static figures, and writing them so that the same figure gives the same bytes."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e7ed",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "figure.dpi": 160,
    "savefig.dpi": 160,
    "savefig.bbox": None,
    "figure.constrained_layout.w_pad": 0.1,
    "svg.hashsalt": "moebench",
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
}
_METADATA: dict[str, dict[str, Any]] = {
    "pdf": {"CreationDate": None, "Creator": None, "Producer": None},
    "svg": {"Date": None, "Creator": None},
    "png": {"Software": None},
}


@contextmanager
def style() -> Iterator[None]:
    """Draw with this project's settings and none of the user's."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)  # type: ignore[arg-type]  # keys are checked when they are set
        yield


def canvas(width: float, height: float) -> Figure:
    """Return an empty figure of ``width`` x ``height`` inches that needs no display and no global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def render(figure: Figure, kinds: Sequence[str] = tuple(_METADATA)) -> dict[str, bytes]:
    """Return the figure as ``pdf``, ``svg`` and ``png``, or some of these, without dates or versions inside."""
    figure.draw_without_rendering()  # lays out once; the three files then share that layout
    figure.set_layout_engine("none")
    rendered = {}
    for kind in kinds:
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=_METADATA[kind])
        rendered[kind] = buffer.getvalue()
    return rendered


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Return positions in the order of ``wanted``, at least ``gap`` apart and as near to it as blocks allow.

    Neighbours that are too close form a block around the mean of what they wanted; touching blocks join.
    """
    order = sorted(range(len(wanted)), key=lambda i: (wanted[i], i))
    blocks: list[list[int]] = []

    def first(block: list[int]) -> float:
        """Return the lowest position of ``block``."""
        return sum(wanted[i] - gap * place for place, i in enumerate(block)) / len(block)

    for index in order:
        blocks.append([index])
        while len(blocks) > 1 and first(blocks[-2]) + gap * len(blocks[-2]) > first(blocks[-1]):
            last = blocks.pop()
            blocks[-1] += last
    placed = [0.0] * len(wanted)
    for block in blocks:
        low = first(block)
        for place, index in enumerate(block):
            placed[index] = low + gap * place
    return placed


def short(text: str, letters: int = 44) -> str:
    """Return ``text`` cut to ``letters`` with an ellipsis, so that one long name does not crowd out a figure."""
    return text if len(text) <= letters else text[: letters - 1] + "\N{HORIZONTAL ELLIPSIS}"


def label_ends(axes: Axes, ends: Sequence[tuple[str, float, float, str]], size: float = 7.5) -> None:
    """Write each label (text, x, y, colour) right of the axes at the height of its point, moved apart vertically.

    Args:
        axes: drawn, with their limits set.
        ends: text, x, y and colour of each label, in the units of the axes.
        size: of the letters, in points.
    """
    if not ends:
        return
    low, high = axes.get_ylim()
    inches = axes.get_figure(root=True).get_size_inches()[1] * axes.get_position().height  # type: ignore[union-attr]  # drawn axes have a figure
    gap = 1.25 * size / 72 / max(inches, 1e-6)
    heights = spread([(y - low) / (high - low) for _, _, y, _ in ends], gap)
    excess = max(0.0, max(heights) - 1.0)
    for (text, x, y, colour), height in zip(ends, heights, strict=True):
        axes.annotate(
            short(text),
            xy=(x, y),
            xytext=(1.03, height - excess),
            textcoords="axes fraction",
            fontsize=size,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "lw": 0.5,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 3,
                "relpos": (0, 0.5),
            },
        )


def apart(place: int, places: int, span: float) -> float:
    """Return the shift of method ``place`` that keeps equal sizes from hiding each other: 4 % of ``span`` in all.

    Args:
        place: of the method among all, from 0.
        places: number of methods.
        span: largest size minus smallest, in the unit of the axis.
    """
    return (place / (places - 1) - 0.5) * 0.04 * span if places > 1 else 0.0
