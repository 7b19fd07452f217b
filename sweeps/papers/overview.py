"""What each table and figure of a paper needs, in a line."""

from __future__ import annotations

from analysis.formatting import count, significant, size
from sweeps.papers.asked import asked
from sweeps.papers.estimate import Estimate, of_rows, of_statistics
from sweeps.papers.measured import text_of
from sweeps.papers.paper_file import Exhibit
from sweeps.papers.shelf import Paper, task_sizes
from sweeps.papers.stand_in import StandIn
from sweeps.papers.wanted import plot_conditions

COLUMNS = ("name", "runs", "tokens", "disk at most", "GPU hours", "printed numbers", "models", "what it shows")


def overview(paper: Paper) -> list[tuple[str, ...]]:
    """Return one line of ``COLUMNS`` for each table and figure of a paper."""
    return [_line(paper, name, exhibit) for name, exhibit in paper.exhibits.items()]


def cost_of(paper: Paper, exhibit: Exhibit) -> Estimate:
    """Return what a table or figure costs on the paper's own models."""
    settings = plot_conditions(paper, exhibit, False, {})
    total = Estimate()
    for key in exhibit.models:
        one = StandIn(key, paper.file.models[key], paper.file.models[key].hub, False)
        total += of_rows(asked(paper.file, exhibit, one, settings), one, settings)
        total += of_statistics((text_of(place, one, settings) for place in exhibit.statistics), one)
        if exhibit.plot is not None and exhibit.plot.reads_text:
            total += of_statistics([settings.calibration], one)
    return total


def known_numbers(exhibit: Exhibit) -> str:
    """Return what is known of the printed numbers."""
    if exhibit.kind == "table":
        have = sum(bool(row.published) for row in exhibit.rows)
        lost = sum(row.mark == "lost" for row in exhibit.rows)
        return f"{have} of {len(exhibit.rows)} rows" + (f", {lost} lost" if lost else "")
    if exhibit.text_points:
        return f"{len(exhibit.text_points)} points of the text"
    return "as marks" if exhibit.published else "none printed"


def models_of(paper: Paper) -> str:
    """Return the models of a paper in words: hub id, size, and which pocket model stands in its place."""
    return "; ".join(
        f"{one.title} ({one.hub}, {one.parameters:g}e9 weights, here {one.pocket or 'nothing'})"
        for one in paper.file.models.values()
    )


def tasks_of(paper: Paper) -> str:
    """Return the tasks of a paper's columns in words, with the items of each."""
    names = dict.fromkeys(one.task or name for name, one in paper.file.columns.items() if one.kind == "task")
    sizes = {name: task_sizes().get(name) for name in names}
    return ", ".join(name if size is None else f"{name} {size.items:,}" for name, size in sizes.items())


def _line(paper: Paper, name: str, exhibit: Exhibit) -> tuple[str, ...]:
    cost = cost_of(paper, exhibit)
    models = ", ".join(paper.file.models[key].title for key in exhibit.models)
    disk = size(cost.bytes) if cost.bytes else ""
    tokens = count(cost.tokens) if cost.tokens else ""
    hours = significant(cost.hours, 2) if cost.hours else ""
    return (name, str(cost.runs or ""), tokens, disk, hours, known_numbers(exhibit), models, exhibit.title)
