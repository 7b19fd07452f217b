"""Figures that are no mean of tasks along one axis: what each kind of drawing is made of, and its section on the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from analysis.papers.plot_text import plot_section
from analysis.papers.sheet import Sheet
from analysis.papers.tables import BESIDE
from sweeps.papers import plots_of_depth, plots_of_experts, plots_of_runs
from sweeps.papers.plot_file import Draws
from sweeps.papers.wanted import Drawn, Wanted

KINDS: Mapping[Draws, Callable[[Wanted], Drawn]] = {
    "tasks": plots_of_runs.tasks,
    "loss": plots_of_runs.loss,
    "lengths": plots_of_runs.lengths,
    "dropped": plots_of_experts.dropped,
    "gone": plots_of_depth.gone,
    "scores": plots_of_experts.scores,
    "importance": plots_of_experts.importance,
    "likeness": plots_of_experts.likeness_of_layers,
    "across": plots_of_experts.across_layers,
}
"""What makes each kind of drawing."""


class Plotted(NamedTuple):
    """A section of a page, files by name, a sentence for each thing that is missing, and CPU seconds of its records."""

    section: str
    files: Mapping[str, bytes]
    missing: tuple[str, ...]
    runs: Mapping[str, float]


def plot(wanted: Wanted) -> Plotted:
    """Run or find what a figure needs, and draw it."""
    paper, name = wanted.paper, wanted.name
    drawn = KINDS[wanted.plot.draws](wanted)
    departs = (*drawn.departs, *wanted.exhibit.departs)
    small = any(one.pocket for one in wanted.models)
    laid = Sheet(
        name,
        wanted.exhibit.title,
        paper.file.source,
        (),
        departs,
        wanted.exhibit.lost,
        wanted.exhibit.untold,
        small,
        wanted.said,
        wanted.beside,
    )
    missing = (*wanted.without, *drawn.missing)
    files = {f"{name}.{kind}": content for kind, content in drawn.pictures.items()}
    if drawn.pictures:
        files = {f"{name}.csv": drawn.numbers, **files}
    picture = f"{BESIDE}{name}.svg" if drawn.pictures else None
    return Plotted(plot_section(laid, drawn.caption, missing, picture), files, missing, drawn.runs)
