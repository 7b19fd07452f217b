"""The static figures: quality against size, where the damage is, and speed against predicted FLOPs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pandas as pd

from analysis.drawing import apart, canvas, label_ends, render, short, style
from analysis.explorer import series
from analysis.figure_limits import shown_boards, shown_runs
from analysis.formatting import known, slug
from analysis.frontier import frontier
from analysis.inference import Z95
from analysis.palette import LIGHT, NEUTRAL, marker, places
from analysis.plain_rows import rows_of
from analysis.ranking import FLOOR
from analysis.similarity import Likeness
from analysis.similarity_figures import similarity_figures
from analysis.table import board_names, is_dense, run_name

Rows = list[dict[str, Any]]
LINES = 24
"""Lines, each with a label, that a panel of ``quality_vs_size`` has room for."""


def draw(
    frame: pd.DataFrame, scores: pd.DataFrame, floor: float = FLOOR, alike: Sequence[Likeness] = ()
) -> dict[str, bytes]:
    """Return every figure that the records allow, as ``name.pdf``, ``.svg`` and ``.png`` with their bytes.

    Args:
        frame: one row a run (``analysis.frame.frame``).
        scores: one row a run, task and metric (``analysis.frame.scores_frame``).
        floor: retention below which quality is shaded, 0 to 1.
        alike: how alike the experts of models are (``analysis.similarity.likenesses``).

    ``quality_vs_size`` has a panel for each model, ``frontier_<model>`` a marker for each run, ``damage_<model>`` a cell
    for each run and task, ``speed_vs_flops`` a point for each timed run, ``similarity_<model>`` a panel for each layer. What
    has no data is not drawn, nor a panel of more than ``LINES`` lines of a model that has a frontier, nor what
    ``analysis.figure_limits`` leaves out.
    """
    if not len(frame):
        return {}
    names = board_names(frame)
    complete = [row for row in rows_of(frame) if row["status"] == "complete"]
    boards = {board: [row for row in complete if row["board"] == board] for board in names}
    compared = shown_boards({b: rows for b, rows in boards.items() if any(not row["is_base"] for row in rows)})
    drawn: dict[str, bytes] = {}
    with style():
        frontiers = {board: frontier(shown_runs(rows), names[board]) for board, rows in compared.items()}
        legible = {b: rows for b, rows in compared.items() if frontiers[b] is None or _lines(rows) <= LINES}
        figures = {
            "quality_vs_size": quality_vs_size(legible, names, floor),
            **{f"frontier_{slug(names[board])}": figure for board, figure in frontiers.items()},
            **{
                f"damage_{slug(names[board])}": damage(shown_runs(rows), scores, names[board])
                for board, rows in compared.items()
            },
            "speed_vs_flops": speed_vs_flops(compared, names),
            **similarity_figures(alike),
        }
        for name, figure in figures.items():
            if figure is not None:
                drawn |= {f"{name}.{kind}": content for kind, content in render(figure).items()}
    return drawn


def _lines(rows: Rows) -> int:
    return len({series(row) for row in rows})


def quality_vs_size(boards: dict[str, Rows], names: dict[str, str], floor: float) -> Any:
    """Draw quality against the share of bytes kept: one panel a model, 95 % intervals, Pareto front, floor shaded.

    Args:
        boards: complete runs by board.
        names: heading of each board.
        floor: retention below which the ground is shaded, 0 to 1.
    """
    panels = {
        board: [row for row in rows if known(row["quality"]) and known(row["keep_bytes"])]
        for board, rows in boards.items()
    }
    panels = {board: rows for board, rows in panels.items() if any(not row["is_base"] for row in rows)}
    if not panels:
        return None
    methods = places(row["title"] for rows in panels.values() for row in rows if not row["is_base"])
    across = min(len(panels), 3)
    down = -(-len(panels) // across)
    figure = canvas(4.6 * across, 3.5 * down)
    axes = figure.subplots(down, across, squeeze=False)
    ends = []
    for place, (board, rows) in enumerate(panels.items()):
        ends.append((axes.flat[place], _quality_panel(axes.flat[place], rows, methods, names[board], floor)))
    for empty in list(axes.flat)[len(panels) :]:
        empty.set_visible(False)
    for panel, labels in ends:
        label_ends(panel, labels)
    return figure


def _quality_panel(
    axes: Any, rows: Rows, methods: dict[str, int], name: str, floor: float
) -> list[tuple[str, float, float, str]]:
    by_perplexity = not any(known(row["average"]) for row in rows)
    axes.set_title(short(name))
    axes.set_xlabel("bytes kept, %")
    axes.set_ylabel("perplexity, base over run, %" if by_perplexity else "average accuracy, %")
    lines: dict[str, Rows] = defaultdict(list)
    for row in rows:
        if not row["is_base"]:
            lines[series(row)].append(row)
    shares = [100 * row["keep_bytes"] for row in rows]
    span = max(max(shares) - min(shares), 2.0)
    titles = [points[0]["title"] for points in lines.values()]
    ends = []
    for label in sorted(lines):
        points = sorted(lines[label], key=lambda row: (row["keep_bytes"], row["quality"]))
        place = methods[points[0]["title"]]
        colour, shape = LIGHT[place % len(LIGHT)], marker(place)
        x, y, error = _points(points, apart(place, len(methods), span))
        axes.errorbar(x, y, yerr=error, color=colour, marker=shape, ms=4.5, lw=0.9, elinewidth=0.8, capsize=1.5)
        title = points[0]["title"]
        ends.append((title if titles.count(title) == 1 else label, x[-1], y[-1], colour))
    base = [row for row in rows if row["is_base"]]
    if base:
        x, y, error = _points(base)
        axes.errorbar(x, y, yerr=error, color=NEUTRAL, marker="*", ms=10, lw=0, elinewidth=0.8, capsize=1.5, zorder=5)
        ends.append(("uncompressed", x[0], y[0], NEUTRAL))
        low = axes.get_ylim()[0]
        if low < floor * y[0]:
            axes.axhspan(low, floor * y[0], color="#a63a00", alpha=0.07, lw=0)
            axes.set_ylim(bottom=low)
    front = sorted((row for row in rows if row["pareto"] is True), key=lambda row: row["keep_bytes"])
    if len(front) > 1:
        x, y, _ = _points(front)
        axes.step(x, y, where="post", color=NEUTRAL, lw=1.2, ls=(0, (1, 1.5)), zorder=1)
    return ends


def _points(rows: Rows, shift: float = 0.0) -> tuple[list[float], list[float], list[float]]:
    errors = [row["quality_error"] if known(row["quality_error"]) else 0.0 for row in rows]
    return (
        [100 * row["keep_bytes"] + shift for row in rows],
        [100 * row["quality"] for row in rows],
        [100 * Z95 * error for error in errors],
    )


def damage(rows: Rows, scores: pd.DataFrame, name: str) -> Any:
    """Draw retention as a grid of runs and tasks, so that damage can be located; a dot marks p < 0.05 after Holm.

    Args:
        rows: complete runs of one board.
        scores: the frame of scores (see ``frame.scores_frame``), of these runs among others.
        name: heading of the board.
    """
    runs = [row for row in rows if not row["is_base"]]
    wanted = scores[scores["headline"].astype(bool) & scores["retention"].notna()]
    cells = {(score["id"], score["task"]): score for score in rows_of(wanted)}
    runs = [row for row in runs if any(run == row["id"] for run, _ in cells)]
    tasks = sorted({task for run, task in cells if any(run == row["id"] for row in runs)})
    if not runs or not tasks:
        return None
    from matplotlib.colors import TwoSlopeNorm

    titles = [short(run_name(row), 72) for row in runs]
    figure = canvas(1.2 + 0.06 * max(28, *map(len, titles)) + 0.62 * len(tasks), 1.7 + 0.21 * len(runs))
    axes = figure.subplots()
    grid = [[_cell(cells, row, task) for task in tasks] for row in runs]
    shown = axes.imshow(grid, cmap="RdBu", norm=TwoSlopeNorm(100, 50, 110), aspect="auto", interpolation="nearest")
    for line, row in enumerate(runs):
        for column, task in enumerate(tasks):
            value = grid[line][column]
            if known(value):
                mark = "•" if _worse(cells[row["id"], task]) else ""
                colour = "white" if value < 64 or value > 109 else "#16202c"
                axes.text(column, line, f"{value:.0f}{mark}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(
        range(len(tasks)),
        [short(task, 28) for task in tasks],
        rotation=40,
        ha="left",
        rotation_mode="anchor",
        fontsize=8,
    )
    axes.xaxis.tick_top()
    axes.set_yticks(range(len(runs)), titles, fontsize=7.5)
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    figure.suptitle(
        f"{short(name)}: retention by task, % of the base", x=0.01, ha="left", fontsize=10, fontweight="bold"
    )
    bar = figure.colorbar(shown, ax=axes, fraction=0.04, pad=0.02, ticks=[50, 60, 70, 80, 90, 100, 110], extend="both")
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)
    axes.set_xlabel("• worse than the base, p < 0.05 after Holm over the tasks of the run", fontsize=7.5)
    return figure


def _cell(cells: dict[tuple[str, str], dict[str, Any]], row: dict[str, Any], task: str) -> float:
    score = cells.get((row["id"], task))
    return 100 * score["retention"] if score else float("nan")


def _worse(score: dict[str, Any]) -> bool:
    return known(score["p_holm"]) and score["p_holm"] < 0.05 and score["retention"] < 1


def speed_vs_flops(boards: dict[str, Rows], names: dict[str, str]) -> Any:
    """Draw measured speed over the base's against what is predicted; on the dotted line they agree.

    Prompts are predicted by FLOPs, decoding by active parameters (docs/serving.md).
    """
    timed = {
        board: shown_runs([_predicted(row, rows) for row in rows if not row["is_base"] and _has_speed(row)])
        for board, rows in boards.items()
    }
    timed = {board: rows for board, rows in timed.items() if rows}
    if not timed:
        return None
    methods = places(row["title"] for rows in timed.values() for row in rows)
    figure = canvas(8.6, 0.4 + 2.9 * len(timed))
    axes = figure.subplots(len(timed), 2, squeeze=False)
    for (board, rows), panels in zip(timed.items(), axes, strict=True):
        for panel, phase in zip(panels, ("prefill", "decode"), strict=True):
            wanted = (f"{phase}_ratio", f"{phase}_predicted")
            _speed_panel(panel, [row for row in rows if all(known(row[name]) for name in wanted)], phase, methods)
            panel.set_title(f"{short(names[board])}: {phase}")
    found = [panel.get_legend_handles_labels() for panel in axes.flat]
    handles = {label: handle for some, labels in found for handle, label in zip(some, labels, strict=True)}
    ordered = sorted(handles)
    figure.legend([handles[label] for label in ordered], ordered, loc="outside right upper", fontsize=8)
    return figure


def _predicted(row: dict[str, Any], rows: Rows) -> dict[str, Any]:
    """Return a row with the speed-ups that its counts and those of its base predict."""
    base = next((one for one in rows if one["is_base"] and known(one["active_parameters"])), None)
    active = base["active_parameters"] / row["active_parameters"] if base and row["active_parameters"] else None
    prefill = 1 / row["flops_share"] if row["flops_share"] else None
    return row | {"prefill_predicted": prefill, "decode_predicted": active}


def _has_speed(row: dict[str, Any]) -> bool:
    return not is_dense(row) and (known(row["prefill_ratio"]) or known(row["decode_ratio"]))


def _speed_panel(panel: Any, rows: Rows, phase: str, methods: dict[str, int]) -> None:
    predicted = [row[f"{phase}_predicted"] for row in rows]
    span = max([*predicted, 1.1]) - 1.0
    for row, x in zip(rows, predicted, strict=True):
        place = methods[row["title"]]
        y = row[f"{phase}_ratio"]
        panel.errorbar(
            x + 2 * apart(place, len(methods), span),
            y,
            yerr=[[max(0.0, y - row[f"{phase}_ratio_low"])], [max(0.0, row[f"{phase}_ratio_high"] - y)]],
            color=LIGHT[place % len(LIGHT)],
            marker=marker(place),
            ms=5,
            lw=0,
            elinewidth=0.8,
            capsize=1.5,
            label=row["title"],
        )
    panel.set_xlim(1.0 - 0.12 * span, 1.0 + 1.12 * span)
    counted = {"prefill": "FLOPs", "decode": "active parameters"}[phase]
    panel.set_xlabel(f"{counted}, base over run (predicted speed-up)")
    panel.set_ylabel("speed over the base's")
    panel.axhline(1.0, color=NEUTRAL, lw=0.8)
    panel.axline((1.0, 1.0), slope=1.0, color=NEUTRAL, lw=0.9, ls=(0, (1, 1.5)))
