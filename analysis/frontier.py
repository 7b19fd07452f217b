"""The frontier of one model: accuracy against bytes on disk, a marker for each run, by family of method."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from analysis.drawing import canvas, short
from analysis.formatting import known
from analysis.inference import Z95
from analysis.knobs import split_training
from analysis.labels import label_points
from analysis.lanes import Point, side_by_side
from analysis.method_families import FAMILIES, Look, family_of
from analysis.palette import NEUTRAL

Row = Mapping[str, Any]
SIZES = 3
"""Different sizes below which there is no frontier to draw."""
_LOGARITHMIC = 5.0  # largest size over smallest from which the axis of sizes is logarithmic


def frontier(rows: Sequence[Row], name: str) -> Any:
    """Draw average accuracy against bytes, with the Pareto front, the base's band, and arrows from before to after training.

    Args:
        rows: complete runs of one board, base among them.
        name: heading of the board.

    Returns:
        The figure; None where fewer than ``SIZES`` different sizes were measured.
    """
    shown = [row for row in rows if known(row["average"]) and known(row["keep_bytes"]) and row["keep_bytes"] > 0]
    runs = [row for row in shown if not row["is_base"]]
    if len({round(row["keep_bytes"], 3) for row in runs}) < SIZES:
        return None
    pairs = trained_pairs(runs)
    figure = canvas(8.6, 6.2)
    axes = figure.subplots()
    at = _places(runs, pairs, _scale(axes, [100 * row["keep_bytes"] for row in shown]))
    _base(axes, [row for row in shown if row["is_base"]])
    taken = _front(axes, [_true(row) for row in shown if row["pareto"] is True])
    for family, look in FAMILIES.items():
        _family(axes, [row for row in runs if family_of(row) == family], look, at)
    for before, after in pairs:
        ends = (at[before["id"]], at[after["id"]])
        _arrow(axes, *ends, FAMILIES[family_of(before)].colour)
        taken += _between(*ends, parts=8)
    axes.set_title(f"{short(name)}: accuracy against size")
    axes.set_ylabel("average accuracy, %")
    axes.set_xlabel("bytes on disk, % of the base's (runs of nearly equal size stand side by side)")
    if any(row["recovery"] for row in runs):
        axes.plot([], [], "o", ms=6.5, mfc="white", mec="black", mew=0.9, label="dark edge: after training")
    figure.legend(loc="outside lower center", ncols=3, fontsize=7.5, columnspacing=1.4, handletextpad=0.6)
    label_points(figure, axes, _labels(runs, at), [*at.values(), *taken])
    return figure


def trained_pairs(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return each trained row of a board with that of the same method and knobs before training, where there is one."""
    untrained: dict[tuple[Any, ...], list[Row]] = defaultdict(list)
    for row in rows:
        if not row["recovery"]:
            untrained[_settings(row)].append(row)
    found = []
    for row in rows:
        same = untrained[_settings(row)] if row["recovery"] else []
        if same:
            before = min(same, key=lambda one: (one["seed_set"] != row["seed_set"], one["group"] != row["group"]))
            found.append((before, row))
    return found


def _settings(row: Row) -> tuple[Any, ...]:
    return (row["method"], split_training(row["knobs"])[0], row["corpus"])


def _true(row: Row) -> Point:
    return (100 * row["keep_bytes"], 100 * row["average"])


def _places(rows: Sequence[Row], pairs: Sequence[tuple[Row, Row]], logarithmic: bool) -> dict[str, Point]:
    """Return where each run is drawn: its accuracy, and its size moved aside where others are as large."""
    afters: dict[str, list[str]] = defaultdict(list)
    for before, after in pairs:
        afters[before["id"]].append(after["id"])
    inner = {after for group in afters.values() for after in group}
    points = {row["id"]: _true(row) for row in rows}
    across = {key: (math.log(x) if logarithmic else x, y) for key, (x, y) in points.items()}
    width, height = (
        max(span[i] for span in across.values()) - min(span[i] for span in across.values()) for i in (0, 1)
    )
    ordered = sorted(rows, key=lambda row: (row["pareto"] is not True, -row["average"], row["id"]))
    groups = [[row["id"], *afters[row["id"]]] for row in ordered if row["id"] not in inner]
    shifts = side_by_side(groups, across, lane=0.011 * width, gap=0.017 * (height or 1.0))
    moved = {key: x + shifts[key] for key, (x, _) in across.items()}
    return {key: (math.exp(moved[key]) if logarithmic else moved[key], y) for key, (_, y) in points.items()}


def _base(axes: Any, rows: Sequence[Row]) -> None:
    """Draw the base as a line over its 95 % band."""
    for row in rows:
        value, half = 100 * row["average"], _half(row)
        axes.axhspan(value - half, value + half, color=NEUTRAL, alpha=0.09, lw=0, zorder=0)
        axes.axhline(
            value, color=NEUTRAL, lw=1.0, zorder=1, label="uncompressed, 95 % band" if half else "uncompressed"
        )


def _front(axes: Any, points: Sequence[Point]) -> list[Point]:
    """Draw the best average that files of at most a size reach; return points along it."""
    front = sorted(points)
    if len(front) < 2:
        return []
    x, y = zip(*front, strict=True)
    axes.step(x, y, where="post", color=NEUTRAL, lw=1.3, ls=(0, (4, 1.5)), zorder=2, label="Pareto front")
    corners = [front[0]]
    for (_, low), (right, high) in pairwise(front):
        corners += [(right, low), (right, high)]
    return [point for ends in pairwise(corners) for point in _between(*ends)]


def _between(start: Point, end: Point, parts: int = 24) -> list[Point]:
    """Return points on a line, for labels to keep away from."""
    shares = [part / parts for part in range(parts + 1)]
    return [(start[0] + (end[0] - start[0]) * part, start[1] + (end[1] - start[1]) * part) for part in shares]


def _family(axes: Any, rows: Sequence[Row], look: Look, at: Mapping[str, Point]) -> None:
    for place, row in enumerate(sorted(rows, key=lambda one: (bool(one["recovery"]), one["id"]))):
        trained = bool(row["recovery"])
        axes.errorbar(
            *at[row["id"]],
            yerr=_half(row),
            color=look.colour,
            marker=look.marker,
            ms=look.size + (0.5 if trained else 0.0),
            mfc=look.colour if look.filled else "none",
            mec="black" if trained else "white" if look.filled else look.colour,
            mew=0.9 if trained or not look.filled else 0.4,
            lw=0,
            elinewidth=0.7,
            ecolor=(look.colour, 0.35),
            zorder=6 if trained else 5,
            label=look.label if place == 0 else None,
        )


def _arrow(axes: Any, start: Point, end: Point, colour: str) -> None:
    head = {
        "arrowstyle": "-|>,head_length=0.35,head_width=0.18",
        "color": colour,
        "lw": 0.7,
        "shrinkA": 2,
        "shrinkB": 3,
    }
    axes.annotate("", xy=end, xytext=start, arrowprops=head, zorder=4)


def _half(row: Row) -> float:
    return 100 * Z95 * row["quality_error"] if known(row["quality_error"]) else 0.0


def _scale(axes: Any, sizes: Sequence[float]) -> bool:
    """Choose the axis of sizes, with room beside the first and last; tell whether it is logarithmic."""
    low, high = min(sizes), max(sizes)
    if high <= _LOGARITHMIC * low:
        room = 0.08 * (high - low)
        axes.set_xlim(low - room, high + room)
        return False
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(low / 1.25, high * 1.25)
    return True


def _labels(runs: Sequence[Row], at: Mapping[str, Point]) -> list[tuple[str, float, float, str]]:
    """Return the labels of runs on the front and of recipes: title, with the words among its knobs where these differ.

    An arrow leads from a recipe to what training made of it, which needs no label of its own.
    """
    named = [row for row in runs if row["pareto"] is True or (family_of(row) == "recipe" and not row["recovery"])]
    named.sort(key=lambda row: (row["pareto"] is not True, row["keep_bytes"], -row["average"], row["id"]))
    return [(short(_name(row, runs), 40), *at[row["id"]], FAMILIES[family_of(row)].colour) for row in named]


def _name(row: Row, runs: Sequence[Row]) -> str:
    """Return the title, with each knob whose value is a word that differs among runs of that title."""
    same = [_words(one) for one in runs if one["title"] == row["title"]]
    own = _words(row)
    told = [value for knob, value in own.items() if len({words.get(knob) for words in same}) > 1]
    return ", ".join([row["title"], *told]) if row["method"] != "recipe" else row["title"]


def _words(row: Row) -> dict[str, str]:
    pairs = (part.partition("=")[::2] for part in split_training(row["knobs"])[0].split(", ") if "=" in part)
    return {knob: value for knob, value in pairs if not value.replace(".", "").replace("-", "").isdigit()}
