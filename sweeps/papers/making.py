"""A table or figure of a paper from settings to files: what is asked, what is run, what is drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.papers.filling import Filled
from analysis.papers.sheet import Sheet
from analysis.papers.tables import csv_text, figure_text, heading, latex, markdown
from bench.records.derived import write_derived
from bench.settings.timing_settings import TimingConfig
from sweeps.papers.asked import asked
from sweeps.papers.laid_out import sheet
from sweeps.papers.plots import plot
from sweeps.papers.recorded import RunGrid, filled_blocks
from sweeps.papers.shelf import Paper
from sweeps.papers.stand_in import stand_ins
from sweeps.papers.wanted import plot_conditions

UNTIMED = "Speed was not measured; `--time` does it."
"""Said where a table has a column of speed and the runs were not timed."""


@dataclass(frozen=True)
class Order:
    """What a user asks for.

    Args:
        model: ``pocket``, or a folder, hub id or pocket model.
        place: key of the paper's model that it stands for; None: by its family.
        family: family file of ``model``, None for ``pocket``.
        store: folder of records.
        run: runs a grid; None: what the store holds is all there is.
        timing: whether and how speed is measured.
        given: ``calibration`` and ``evaluation``, each with the fields that a user gave.
        machine: ``workers`` and ``threads`` of the grids, where given.
    """

    model: str
    place: str | None
    family: str | None
    store: Path
    run: RunGrid | None
    timing: TimingConfig = field(default_factory=lambda: TimingConfig(enabled=False))
    given: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Made:
    """What was made of a table or figure.

    Args:
        section: its part of a page, in Markdown.
        files: contents by name.
        missing: one sentence for each row without a number of ours.
    """

    section: str
    files: Mapping[str, bytes]
    missing: tuple[str, ...] = ()


def make(paper: Paper, name: str, order: Order) -> Made:
    """Run or find what a table or figure needs, and draw it.

    Args:
        paper: the paper.
        name: of its table or figure.
        order: what to measure, and where.

    Raises:
        MoebenchError: a setting that no run can start with, or a figure whose statistics are missing.
    """
    exhibit = paper.exhibit(name)
    if exhibit.kind == "told":
        return Made(_told(paper, name), {})
    models = stand_ins(paper.file, exhibit, order.model, order.place, order.family)
    settings = plot_conditions(paper, exhibit, any(one.pocket for one in models), order.given)
    if exhibit.plot is not None:
        return Made(*plot(paper, name, models, settings, order))
    asked_for = [(one, asked(paper.file, exhibit, one, settings)) for one in models]
    laid = sheet(paper, name, asked_for, settings)
    if order.run is not None and not order.timing.enabled and any(c.kind == "speedup" for c in laid.blocks[0].columns):
        laid = replace(laid, departs=(*laid.departs, UNTIMED))
    filled = filled_blocks(laid, asked_for, settings, order, order.timing)
    if exhibit.kind == "curve":
        return _curve(paper, name, laid, filled)
    return _table(name, laid, filled)


def write(made: Made, name: str, out: Path, alone: bool = True) -> list[Path]:
    """Write the files of a table or figure and its section into ``out``.

    Args:
        made: what was made.
        name: of the table or figure.
        out: folder, made where it is missing.
        alone: whether the section gets a file of its own, since it is part of no page.

    Raises:
        RecordError: the disk refuses.
    """
    contents = {**({f"{name}.md": made.section.encode()} if alone else {}), **made.files}
    return [write_derived(out / file, content) for file, content in contents.items()]


def page(paper: Paper, sections: Sequence[str]) -> str:
    """Return the page of a paper: what it is, then every table and figure.

    Args:
        paper: the paper.
        sections: of its tables and figures, in order.
    """
    head = f"# {paper.file.title}\n\n{paper.file.source}. Written by `moebench paper {paper.name} all`.\n"
    return "\n".join((head, *sections))


def _curve(paper: Paper, name: str, laid: Sheet, filled: Sequence[Filled]) -> Made:
    from analysis.papers.curves import curves

    drawn = {f"{name}.{kind}": content for kind, content in curves(filled, paper.exhibit(name).x).items()}
    files = {f"{name}.csv": csv_text(filled).encode(), **drawn}
    picture = f"{paper.name}/{name}.svg" if drawn else None
    return Made(figure_text(laid, filled, picture), files, tuple(text for one in filled for text in one.missing))


def _told(paper: Paper, name: str) -> str:
    exhibit = paper.exhibit(name)
    laid = Sheet(name, exhibit.title, paper.file.source, ())
    return f"## {heading(laid)}\n\n{exhibit.title}.\n\n" + "\n".join(f"- {text}" for text in exhibit.lost) + "\n"


def _table(name: str, laid: Sheet, filled: Sequence[Filled]) -> Made:
    files = {f"{name}.csv": csv_text(filled).encode(), f"{name}.tex": latex(laid, filled).encode()}
    return Made(markdown(laid, filled), files, tuple(text for one in filled for text in one.missing))
