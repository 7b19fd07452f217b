"""A table or figure of a paper from settings to files: what is asked, what is run, what is drawn."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from analysis.papers.filling import Filled
from analysis.papers.sheet import Sheet
from analysis.papers.tables import BESIDE, SMALL, common, csv_text, figure_text, heading, latex, markdown
from bench.records.derived import write_derived
from bench.settings.timing_settings import TimingConfig
from sweeps.papers.asked import asked
from sweeps.papers.beside import Beside
from sweeps.papers.fitted import Shape
from sweeps.papers.laid_out import sheet
from sweeps.papers.plots import plot
from sweeps.papers.recorded import RunGrid, filled_blocks, runs_of
from sweeps.papers.shelf import Paper
from sweeps.papers.stand_in import POCKET, conditions, stand_ins
from sweeps.papers.wanted import Wanted, plot_conditions

UNTIMED = "no speed was measured; --time does it."
"""Said of a model where a table has a column of speed and no run was timed."""


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
        said: sentences that the page says once for all its tables and figures, so that these leave them out.
        shape: of ``model``, None for ``pocket``.
        texts: in the place of those of single lines of a figure, by the label of the line.
        beside: what ``model`` is, where its sections are for the page of the pocket models to take up.
    """

    model: str
    place: str | None
    family: str | None
    store: Path
    run: RunGrid | None
    timing: TimingConfig = field(default_factory=lambda: TimingConfig(enabled=False))
    given: Mapping[str, Any] = field(default_factory=dict)
    machine: Mapping[str, Any] = field(default_factory=dict)
    said: frozenset[str] = frozenset()
    shape: Shape | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    beside: str | None = None

    @property
    def shown_beside(self) -> str:
        """Name of the model, where the same of other models stands above it on a page; empty where it stands alone."""
        return Path(self.model).name if self.beside is not None else ""


@dataclass(frozen=True)
class Made:
    """What was made of a table or figure.

    Args:
        section: its part of a page, in Markdown, with addresses of files that lie beside it.
        files: contents by name.
        missing: one sentence for each row without a number of ours.
        runs: CPU seconds of each record that stands in it, by its id.
    """

    section: str
    files: Mapping[str, bytes]
    missing: tuple[str, ...] = ()
    runs: Mapping[str, float] = field(default_factory=dict)


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
    models = stand_ins(paper.file, exhibit, order.model, order.place, order.family, order.shape)
    found = plot_conditions(paper, exhibit, any(one.pocket for one in models), order.given)
    settings = replace(found, texts=order.texts)
    if exhibit.plot is not None:
        return Made(*plot(Wanted(paper, name, models, settings, order, order.said, order.shown_beside)))
    if exhibit.statistics:
        from sweeps.papers.profiled import profiled

        shown = profiled(Wanted(paper, name, models, settings, order, order.said, order.shown_beside))
        return Made(shown.section, shown.files, shown.missing)
    asked_for = [(one, asked(paper.file, exhibit, one, settings)) for one in models]
    laid = replace(sheet(paper, name, asked_for, settings), said=order.said, beside=order.shown_beside)
    filled = filled_blocks(laid, asked_for, settings, order, order.timing)
    untimed = [f"{one.block.title}: {UNTIMED}" for one in filled if one.untimed]
    laid = replace(laid, departs=(*laid.departs, *untimed))
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


def whole(paper: Paper, order: Order) -> tuple[Order, list[str]]:
    """Return the order for tables and figures of one page, and the paragraphs that the page says for all of them.

    Args:
        paper: the paper.
        order: what to measure, and where.
    """
    shown = [exhibit for exhibit in paper.exhibits.values() if exhibit.kind != "told"]
    small = order.model == POCKET or order.model.startswith("pocket-")
    settings = [conditions(paper, exhibit, small, order.given).differences for exhibit in shown]
    shared = [text for text in (settings[0] if settings else ()) if all(text in others for others in settings)]
    departs, untold = (*shared, *paper.file.departs), paper.file.untold
    said = frozenset((*departs, *untold, SMALL))
    return replace(order, said=said), common(small, departs, untold)


def page(paper: Paper, made: Mapping[str, Made], paragraphs: Sequence[str], others: Iterable[Beside] = ()) -> str:
    """Return the page of a paper: what it is, then every table and figure.

    Args:
        paper: the paper.
        made: its tables and figures by name, in order.
        paragraphs: what the page says for all of them.
        others: models whose sections stand below those of the same name.
    """
    others = list(others)
    runs: dict[str, float] = {}
    for one in made.values():
        runs |= one.runs
    head = f"{paper.file.source}. Written by `moebench paper {paper.name} all`"
    cost = f" from {len(runs)} runs, whose own stages took {sum(runs.values()):,.0f} CPU seconds" if runs else ""
    names = [f"- [{name.replace('-', ' ').capitalize()}](#{name}): {paper.exhibit(name).title}" for name in made]
    written = [
        text
        for name, one in made.items()
        for text in (one.section, *(other.sections[name] for other in others if name in other.sections))
    ]
    sections = [text.replace(f"]({BESIDE}", f"]({BESIDE}{paper.name}/") for text in written]
    told = [f"Beside them stands **{one.name}**: {one.about}" for one in others]
    parts = [f"# {paper.file.title}", f"{head}{cost}.", *told, *paragraphs, "\n".join(names)]
    return "\n".join(("\n\n".join(parts) + "\n", *sections))


def _curve(paper: Paper, name: str, laid: Sheet, filled: Sequence[Filled]) -> Made:
    from analysis.papers.curves import curves

    drawn = {f"{name}.{kind}": content for kind, content in curves(filled, paper.exhibit(name).x).items()}
    files = {f"{name}.csv": csv_text(filled).encode(), **drawn}
    picture = f"{BESIDE}{name}.svg" if drawn else None
    return _made(figure_text(laid, filled, picture), files, filled)


def _told(paper: Paper, name: str) -> str:
    exhibit = paper.exhibit(name)
    laid = Sheet(name, exhibit.title, paper.file.source, ())
    return f"## {heading(laid)}\n\n{exhibit.title}.\n\n" + "\n".join(f"- {text}" for text in exhibit.lost) + "\n"


def _table(name: str, laid: Sheet, filled: Sequence[Filled]) -> Made:
    files = {f"{name}.csv": csv_text(filled).encode(), f"{name}.tex": latex(laid, filled).encode()}
    return _made(markdown(laid, filled), files, filled)


def _made(section: str, files: Mapping[str, bytes], filled: Sequence[Filled]) -> Made:
    missing = tuple(text for one in filled for text in one.missing)
    return Made(section, files, missing, runs_of(filled))
