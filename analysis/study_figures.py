"""The figures of a study: averages with their intervals, an overview of all cells, and the harm of one-domain text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from analysis.drawing import canvas, render, short, style
from analysis.formatting import MINUS, slug
from analysis.palette import LIGHT, NEUTRAL
from analysis.similarity import Likeness
from analysis.similarity_figures import similarity_figures
from analysis.study_cells import AVERAGE, Cell
from analysis.study_domains import Matrix
from analysis.study_layout import Study, Table
from analysis.study_merging import Merging, merging_figure

KINDS = ("svg", "png")


def draw_study(
    study: Study, found: Sequence[Matrix], alike: Sequence[Likeness] = (), merged: Sequence[Merging] = ()
) -> dict[str, bytes]:
    """Return every figure of a study as ``name.svg`` and ``name.png`` with their bytes.

    Args:
        study: laid out.
        found: changes by calibration domain.
        alike: how alike the experts of its models are.
        merged: its methods that merge or replace experts, against the best that selects.
    """
    figures: dict[str, Any] = {}
    with style():
        for model in study.models:
            tables = [table for table in study.tables if table.model == model]
            figures[f"averages_{slug(model)}"] = averages(model, tables)
        if study.tables:
            figures["overview"] = overview(study)
        for matrix in found:
            name = f"{slug(matrix.model)}_{slug(matrix.keep)}"
            figures[f"domains_{name}"] = domains(matrix)
            if len(matrix.methods) > 1:
                figures[f"domains_by_method_{name}"] = domains_by_method(matrix)
        figures |= similarity_figures(alike)
        if (figure := merging_figure(merged, alike)) is not None:
            figures["merging"] = figure
        return {
            f"{name}.{kind}": content
            for name, figure in figures.items()
            for kind, content in render(figure, KINDS).items()
        }


def averages(model: str, tables: Sequence[Table]) -> Any:
    """Draw each method's average with its interval over seeds, one panel a share; filled: not separated from the best."""
    longest = max(len(table.entries) for table in tables)
    figure = canvas(3.9 * len(tables), 1.1 + 0.2 * longest)
    panels = figure.subplots(1, len(tables), squeeze=False)[0]
    for axes, table in zip(panels, tables, strict=True):
        leading = table.leading[AVERAGE]
        for place, entry in enumerate(table.entries):
            own = entry.cells[AVERAGE]
            assert own is not None
            colour = LIGHT[1] if entry.method == "random" else LIGHT[0]
            axes.errorbar(
                100 * own.mean.value,
                place,
                xerr=100 * (own.mean.half or 0.0),
                fmt="o",
                ms=5,
                color=colour,
                mfc=colour if place in leading else "white",
                elinewidth=1,
                capsize=2,
            )
        if table.base is not None and (top := table.base.cells[AVERAGE]) is not None:
            axes.axvline(100 * top.mean.value, color=NEUTRAL, lw=1, ls=(0, (1, 1.5)))
        low, high = axes.get_xlim()
        axes.set_xlim(max(low, 0.0), min(high, 102.0))
        axes.set_yticks(range(len(table.entries)), [short(entry.label, 60) for entry in table.entries], fontsize=7.5)
        axes.set_ylim(len(table.entries) - 0.4, -0.6)
        axes.set_title(f"keep {table.keep}")
        axes.set_xlabel("average, %")
    figure.suptitle(
        f"{short(model)}: mean over seeds, 95 % interval", x=0.01, ha="left", fontsize=10, fontweight="bold"
    )
    return figure


def overview(study: Study) -> Any:
    """Draw the loss of every method in every cell, methods by their mean loss; a dot marks the leading group."""
    names = {entry.label for table in study.tables for entry in table.entries}
    losses: dict[str, list[float]] = {name: [] for name in names}
    grid: dict[tuple[str, int], tuple[float, bool]] = {}
    for column, table in enumerate(study.tables):
        top = _value(table.base.cells[AVERAGE]) if table.base is not None else 0.0
        for place, entry in enumerate(table.entries):
            change = 100 * (_value(entry.cells[AVERAGE]) - top)
            grid[entry.label, column] = (change, place in table.leading[AVERAGE])
            losses[entry.label].append(change)
    order = sorted(names, key=lambda name: (-len(losses[name]), -sum(losses[name]) / len(losses[name]), name))
    figure = canvas(2.6 + 0.72 * len(study.tables), 1.5 + 0.23 * len(order))
    axes = figure.subplots()
    values = [
        [grid.get((name, column), (float("nan"), False))[0] for column in range(len(study.tables))] for name in order
    ]
    texts = [
        [
            "" if (name, column) not in grid else "•" if grid[name, column][1] else ""
            for column in range(len(study.tables))
        ]
        for name in order
    ]
    shown = _heat(axes, values, texts, 45.0)
    axes.set_yticks(range(len(order)), [short(name, 60) for name in order], fontsize=7.5)
    heads = [f"{short(table.model, 18)}\n{table.keep}" for table in study.tables]
    axes.set_xticks(range(len(heads)), heads, fontsize=7, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    figure.suptitle("Average minus the base's, points", x=0.01, ha="left", fontsize=10, fontweight="bold")
    axes.set_xlabel("• not separated from the best of its column", fontsize=7.5)
    _bar(figure, shown, axes).set_ylim(-45, 5)
    return figure


def domains(matrix: Matrix) -> Any:
    """Draw the mean change over methods by calibration domain and task."""
    figure = canvas(2.2 + 0.62 * len(matrix.tasks), 1.9 + 0.34 * len(matrix.domains))
    axes = figure.subplots()
    shown = _domain_panel(axes, matrix)
    figure.suptitle(
        f"{short(matrix.model)}, keep {matrix.keep}: one domain against all, points, mean of {len(matrix.methods)} methods",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    _bar(figure, shown, axes)
    return figure


def domains_by_method(matrix: Matrix) -> Any:
    """Draw the same for each method by itself."""
    across = min(3, len(matrix.methods))
    down = -(-len(matrix.methods) // across)
    figure = canvas(across * (1.6 + 0.4 * len(matrix.tasks)), down * (1.5 + 0.26 * len(matrix.domains)) + 0.3)
    panels = figure.subplots(down, across, squeeze=False)
    shown = None
    for axes, method in zip(panels.flat, matrix.methods, strict=False):
        shown = _domain_panel(axes, matrix.of(method), small=True)
        axes.set_title(short(method, 60), fontsize=8.5, pad=46)
    for axes in list(panels.flat)[len(matrix.methods) :]:
        axes.set_visible(False)
    figure.suptitle(
        f"{short(matrix.model)}, keep {matrix.keep}: one domain against all, points",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    _bar(figure, shown, list(panels.flat))
    return figure


def _domain_panel(axes: Any, matrix: Matrix, small: bool = False) -> Any:
    from matplotlib.patches import Rectangle

    values = [
        [float("nan") if (change := matrix.change(domain, task)) is None else 100 * change for task in matrix.tasks]
        for domain in matrix.domains
    ]
    shown = _heat(axes, values, None, 40.0, size=5.5 if small else 7.5)
    for line, domain in enumerate(matrix.domains):
        for column, task in enumerate(matrix.tasks):
            if matrix.is_home(domain, task):
                axes.add_patch(Rectangle((column - 0.5, line - 0.5), 1, 1, fill=False, ec=NEUTRAL, lw=1.2))
    size = 6.5 if small else 8
    axes.set_yticks(range(len(matrix.domains)), [short(name, 24) for name in matrix.domains], fontsize=size)
    heads = [short(matrix.short[task], 24) for task in matrix.tasks]
    axes.set_xticks(range(len(heads)), heads, fontsize=size, rotation=45, ha="left", rotation_mode="anchor")
    axes.xaxis.tick_top()
    if not small:
        axes.set_ylabel("calibrated on")
        axes.set_xlabel("evaluated on; framed: the domain's own tasks", fontsize=8)
    return shown


def _heat(
    axes: Any,
    values: Sequence[Sequence[float]],
    marks: Sequence[Sequence[str]] | None,
    largest: float,
    size: float = 7,
) -> Any:
    from matplotlib.colors import Normalize

    norm = Normalize(-largest, largest)
    shown = axes.imshow(values, cmap="RdBu", norm=norm, aspect="auto", interpolation="nearest")
    for line, row in enumerate(values):
        for column, value in enumerate(row):
            if value == value:
                mark = marks[line][column] if marks else ""
                text = f"{value:.0f}".replace("-0", "0") if abs(value) < 0.5 else f"{value:.0f}"
                dark = not 0.12 < float(norm(value)) < 0.88
                axes.text(
                    column,
                    line,
                    f"{text.replace('-', MINUS)}{mark}",
                    ha="center",
                    va="center",
                    fontsize=size,
                    color="white" if dark else "#16202c",
                )
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    return shown


def _bar(figure: Any, shown: Any, axes: Any) -> Any:
    bar = figure.colorbar(shown, ax=axes, fraction=0.035, pad=0.02, extend="both")
    bar.ax.tick_params(labelsize=7.5)
    bar.outline.set_visible(False)
    return bar.ax


def _value(cell: Cell | None) -> float:
    return cell.mean.value if cell is not None else float("nan")
