"""A table or curve as analysis draws it: columns and rows with the words, knobs and printed numbers of each model filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from analysis.papers.printed import printed, printed_words
from analysis.papers.sheet import Block, Column, Line, Sheet, TextPoint
from bench.settings.method_settings import MethodConfig, RecipeConfig
from methods.registry import method_class
from sweeps.papers.asked import Asked, filled
from sweeps.papers.paper_file import Exhibit, PaperFile
from sweeps.papers.shelf import Paper, pocket_settings, task_sizes
from sweeps.papers.stand_in import Conditions, StandIn

MEAN = "mean"
"""Name of the mean over tasks that are not the paper's."""


def sheet(paper: Paper, name: str, asked_for: Sequence[tuple[StandIn, Sequence[Asked]]], settings: Conditions) -> Sheet:
    """Return a table or curve of a paper, ready to be filled from records.

    Args:
        paper: the paper.
        name: of the table or figure.
        asked_for: its models, each with its rows.
        settings: of its evaluation.
    """
    exhibit = paper.exhibit(name)
    blocks = tuple(_block(paper.file, exhibit, one, rows, settings) for one, rows in asked_for)
    told: dict[str, dict[str, None]] = {}
    for _, rows in asked_for:
        for row in rows:
            for text in row.departs:
                told.setdefault(text, {})[row.label] = None
    of_rows = [f"{', '.join(labels)}: {text}." for text, labels in told.items()]
    departs = (*settings.differences, *exhibit.departs, *paper.file.departs, *of_rows)
    small = any(one.pocket for one, _ in asked_for)
    untold = (*exhibit.untold, *paper.file.untold)
    points = tuple(point for one, _ in asked_for for point in _text_points(exhibit, one))
    return Sheet(name, exhibit.title, paper.file.source, blocks, departs, exhibit.lost, untold, small, told=points)


def _text_points(exhibit: Exhibit, one: StandIn) -> list[TextPoint]:
    """Return the points of a curve that the paper's text tells of a model, at the nearest number of parts here.

    Args:
        exhibit: the figure.
        one: the model.
    """
    if exhibit.points is None or exhibit.published is None or not one.model:
        return []
    total, step = (int(filled(str(value), one.words)) for value in (exhibit.points.total, exhibit.points.step))
    found = []
    for point in exhibit.text_points:
        if point.model == one.key:
            at = step * max(1, int(point.share * total / step + 0.5))
            select = {"model": one.paper.title, "setting": point.setting, "quantity": point.quantity}
            value = printed_words(exhibit.published, select, "value")
            words = f"{point.setting}: {point.quantity}"
            found.append(TextPoint(one.paper.title, point.series, at, words, value))
    return found


def columns_of(paper: PaperFile, exhibit: Exhibit) -> tuple[Column, ...]:
    """Return the paper's columns; a curve has the tasks of the mean, then the mean."""
    names = list(exhibit.columns)
    if not names and "avg" in paper.columns:
        names = [*paper.columns["avg"].of, "avg"]
    return tuple(
        Column(name, one.title, one.kind, (one.task or name) if one.kind == "task" else "", one.of, one.digits)
        for name, one in ((name, paper.columns[name]) for name in names)
    )


def _block(paper: PaperFile, exhibit: Exhibit, one: StandIn, rows: Sequence[Asked], settings: Conditions) -> Block:
    theirs = columns_of(paper, exhibit)
    ours = theirs if settings.own_tasks else _replaced(theirs, settings)
    lines = tuple(
        _line(row, {column.name: paper.columns[column.name].published or column.name for column in theirs})
        for row in rows
    )
    return Block(one.paper.title, one.name, ours, theirs, lines, paper.protocol.metrics, _chance(ours), one.recorded)


def _chance(columns: Sequence[Column]) -> float | None:
    """Return what guessing scores in the mean, in percent; None where a task has no known number of answers."""
    mean = next((column for column in columns if column.kind == "mean"), None)
    if mean is None:
        return None
    sizes = [task_sizes().get(column.task) for column in columns if column.name in mean.of]
    shares = [share for size in sizes if size is not None and (share := size.chance) is not None]
    return 100 * sum(shares) / len(shares) if shares and len(shares) == len(mean.of) else None


def _replaced(columns: Sequence[Column], settings: Conditions) -> tuple[Column, ...]:
    """Return the columns with the tasks that were really scored, and one mean over all of them."""
    titles = pocket_settings().titles
    tasks = [name.removesuffix("_local") for name in settings.evaluation.tasks]
    kept = [column for column in columns if column.kind not in ("task", "mean")]
    text = [name for name in tasks if _runs_on(name)]
    choices = [name for name in tasks if name not in text]
    called = {column.task: column.title for column in columns} | titles
    scored = [Column(name, called.get(name, name), task=name) for name in choices]
    mean = [Column(MEAN, "mean", "mean", of=tuple(choices))] if len(choices) > 1 else []
    read = [
        Column(name, f"{called.get(name, name)}, perplexity of a word ± 1.96 standard errors", "perplexity", name)
        for name in text
    ]
    return (*kept, *scored, *mean, *read)


def _runs_on(task: str) -> bool:
    """Return whether a task scores running text: it has one request for each item, so there is nothing to choose."""
    size = task_sizes().get(task)
    return size is not None and size.requests == 1


def _line(row: Asked, named: Mapping[str, str]) -> Line:
    """Return a row; ``named`` says how the published file calls each column."""
    found = {} if row.published is None or row.table is None else printed(row.table, row.published)
    numbers = {name: found[theirs] for name, theirs in named.items() if theirs in found}
    runs = row.reason is None
    reads = runs and row.compression is not None
    return Line(
        row.label,
        row.method if runs else None,
        row.knobs if runs else {},
        _stated(row) if runs else frozenset(),
        numbers,
        row.mark,
        row.reason,
        (row.calibration.corpus, row.calibration.sequences) if reads else None,
        row.x,
        row.printed_label,
    )


def _stated(row: Asked) -> frozenset[str]:
    """Return the knobs that differ from their defaults, and all that a training states."""
    named: list[tuple[str, MethodConfig]] = []
    if isinstance(row.compression, RecipeConfig):
        named = [(f"{number}.{step.name}.", step) for number, step in enumerate(row.compression.steps, 1)]
    elif row.compression is not None:
        named = [("", row.compression)]
    defaults: dict[str, object] = {}
    for prefix, one in named:
        defaults |= {prefix + knob: value for knob, value in method_class(one.name)().knobs.items()}
    return frozenset(name for name, value in row.knobs.items() if name not in defaults or defaults[name] != value)
