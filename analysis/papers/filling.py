"""The cells of a paper's table from records: values, differences to the uncompressed model, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from analysis.averaging import average_seeds
from analysis.comparison import Comparison, compare
from analysis.inference import Difference, average_difference, mean_with_error
from analysis.papers.sheet import Block, Column, Line
from analysis.protocol import error_of
from bench.records.record import Record, Score

_LOCAL = "_local"
"""Ending of the same task with local data."""
_PERPLEXITY = ("word_perplexity",)
_NO = object()


@dataclass(frozen=True)
class Cell:
    """One number: of ours with its difference to the uncompressed model, and of the paper.

    Args:
        ours: None where nothing was measured; scores in percent.
        error: standard error of ``ours`` over the items.
        difference: to our uncompressed model on the same items, in the unit of ``ours``.
        published: None where the paper prints none.
        published_difference: to the paper's uncompressed model.
        ends: of the interval of a ratio of speeds.
        noise: marks of a timing that make its ratio doubtful.
    """

    ours: float | None = None
    error: float | None = None
    difference: Difference | None = None
    published: float | None = None
    published_difference: float | None = None
    ends: tuple[float, float] | None = None
    noise: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """One row with its cells by column; ``missing`` says why there is no number of ours."""

    line: Line
    cells: Mapping[str, Cell]
    missing: str | None = None
    notes: tuple[str, ...] = ()
    record: Record | None = None


@dataclass(frozen=True)
class Filled:
    """The rows of one model."""

    block: Block
    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = ()
    items: tuple[int, int] = field(default=(0, 0))

    @property
    def untimed(self) -> bool:
        """Whether the paper prints speeds, and no compressed model here has one."""
        names = [column.name for column in self.block.columns if column.kind == "speedup"]
        ratios = [row.cells[name].ends for row in self.rows for name in names if name in row.cells]
        return bool(names) and bool(self.block.model) and not any(ratios)

    @property
    def missing(self) -> list[str]:
        """One sentence for each row without a number of ours, or for the model where all lack one for the same reason."""
        reasons = {row.missing for row in self.rows}
        if len(self.rows) > 1 and len(reasons) == 1 and None not in reasons:
            return [f"{self.block.title}: {reason}" for reason in reasons]
        named = [
            (row, row.line.label if not row.line.x else f"{row.line.label} at {row.line.x:g}") for row in self.rows
        ]
        return [f"{self.block.title}, {label}: {row.missing}" for row, label in named if row.missing]


def fill(block: Block, records: Iterable[Record], only: Collection[str] | None = None) -> Filled:
    """Return a block with its cells.

    Args:
        block: laid out.
        records: of any runs.
        only: names of the records that may stand in it; None: all. Bases always may.
    """
    chosen = [
        record
        for record in records
        if (only is None or record.id in only)
        and block.model
        and _is_of(block.recorded or block.model, record.model.name)
    ]
    found = average_seeds(compare(sorted(chosen, key=lambda record: record.id)))
    base = next((line for line in block.lines if line.method is None and line.reason is None), None)
    rows = tuple(_row(line, base, block, found) for line in block.lines)
    used = [row.record for row in rows if row.record is not None]
    counts = [score.n for record in used for score in record.scores]
    seeds = sorted({record.seeds.get("calibration", 0) for record in used if record.corpus is not None})
    return Filled(block, rows, tuple(seeds), (min(counts), max(counts)) if counts else (0, 0))


def matches(line: Line, record: Record) -> bool:
    """Return whether a run is what a row asks for: the same method with the same knobs, whatever its seed.

    A knob that the record does not have came later, so it had what is the default now.
    """
    if record.method != line.method:
        return False
    known = {name: value for name, value in _json(record.knobs).items() if name.split(".")[-1] != "seed"}
    return line.stated <= known.keys() and all(line.knobs.get(name, _NO) == value for name, value in known.items())


def _is_of(model: str, name: str) -> bool:
    return name in (model, model.rsplit("/", 1)[-1], model.partition("@")[0]) or name.rsplit("/", 1)[-1] == model


def _json(value: Mapping[str, Any]) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(json.dumps(value))
    return read


def _row(line: Line, base: Line | None, block: Block, found: Sequence[Comparison]) -> Row:
    if line.reason is not None or not block.model:
        return Row(line, _published(line, base, block), line.reason or "no model stands for it here")
    fitting = [one for one in found if matches(line, one.record)]
    complete = [one for one in fitting if one.record.status == "complete"]
    if not complete:
        said = {f"{one.record.status}: {one.record.reason}" for one in fitting}
        return Row(line, _published(line, base, block), "; ".join(sorted(said)) or "no run of it is in the store")
    best = max(complete, key=lambda one: _fitness(line, block, one.record))
    cells = dict(_published(line, base, block))
    for column in block.columns:
        theirs = cells.get(column.name, Cell())
        own = _ours(column, block, best)
        cells[column.name] = replace(own, published=theirs.published, published_difference=theirs.published_difference)
    notes = [*_notes(line, best), *(_timed_how(best.record) if _has_speeds(block) else ())]
    return Row(line, cells, None, tuple(notes), best.record)


def _fitness(line: Line, block: Block, record: Record) -> tuple[int, int, bool, str]:
    """Return what is compared where several runs fit a row: the largest stands in it.

    Args:
        line: the row.
        block: its model.
        record: the run; one that was timed goes before one that was not, or could not be.
    """
    timed = _speed(record).ours is not None
    return _nearness(line, record), _tasks(block, record), timed, record.created


def _published(line: Line, base: Line | None, block: Block) -> dict[str, Cell]:
    reference = base.published if base is not None else {}
    cells = {}
    for column in block.paper_columns:
        value = line.published.get(column.name)
        change = None if value is None or column.name not in reference else value - reference[column.name]
        cells[column.name] = Cell(published=value, published_difference=change)
    return cells


def _nearness(line: Line, record: Record) -> int:
    """Return how much of the text that a row asks for a run has: its name counts more than its number of windows."""
    if line.corpus is None or record.corpus is None:
        return 0
    name, sequences = line.corpus
    return 2 * (record.corpus.name == name) + (record.corpus.sequences == sequences)


def _tasks(block: Block, record: Record) -> int:
    metrics = {"task": block.metrics, "perplexity": _PERPLEXITY}
    scored = [column for column in block.columns if column.kind in metrics]
    return sum(_score(record, column, metrics[column.kind]) is not None for column in scored)


def _notes(line: Line, one: Comparison) -> Iterable[str]:
    corpus = one.record.corpus
    if line.corpus is not None and corpus is not None and (corpus.name, corpus.sequences) != line.corpus:
        asked_for = f"{line.corpus[1]} of {line.corpus[0]}"
        yield f"{line.label}: calibrated on {corpus.sequences} windows of {corpus.name}, not {asked_for}."
    if one.base is None and one.record.method is not None:
        yield f"{line.label}: no uncompressed model was scored in the same way, so no difference is given."


def _ours(column: Column, block: Block, one: Comparison) -> Cell:
    """Return our number of a column with its error and its difference to the base."""
    record = one.record
    if column.kind == "gib":
        return Cell(record.cost.bytes / 2**30 if record.cost else None)
    if column.kind == "tflops":
        return Cell(record.cost.flops / 1e12 if record.cost else None)
    if column.kind == "speedup":
        return _speed(record)
    if column.kind == "perplexity":
        score = _score(record, column, _PERPLEXITY)
        return Cell() if score is None else Cell(score.value, error_of(score))
    names = column.of or (column.name,)
    parts = [part for part in block.columns if part.name in names and part.kind == "task"]
    scores = [score for part in parts if (score := _score(record, part, block.metrics)) is not None]
    if len(scores) < len(names):
        return Cell()
    value, error = mean_with_error([score.value for score in scores], [error_of(score) for score in scores])
    gaps = [gap for score in scores if (gap := one.pair(score)) is not None]
    gap = average_difference(gaps) if len(gaps) == len(scores) else None
    return Cell(100 * value, None if error is None else 100 * error, gap and _scaled(gap))


def _has_speeds(block: Block) -> bool:
    return any(column.kind == "speedup" for column in block.columns)


def _speed(record: Record) -> Cell:
    """Return how much faster a model generates than the uncompressed one, which is timed in alternation with it."""
    times = record.timing
    if times is None or times.reason or (record.method is not None and times.decode_ratio is None):
        return Cell()
    if record.method is None or times.decode_ratio is None:
        return Cell(1.0)
    ratio = times.decode_ratio
    return Cell(ratio.median, ends=(ratio.low, ratio.high), noise=times.marks)


def _timed_how(record: Record) -> Iterable[str]:
    """Yield in words how a compressed model was timed, or why it was not."""
    times = record.timing
    if times is None or record.method is None:
        return
    if times.reason is not None:
        yield f"{record.title}: not timed, {times.reason}."
        return
    stated = times.protocol
    words = {"engine": "with {}", "platform": "on {}", "batch": "a batch of {}", "prompt": "prompts of {} tokens"}
    how = ", ".join(
        text.format(stated[name]) for name, text in (words | {"generate": "{} generated"}).items() if name in stated
    )
    yield (
        f"SpeedUp: generating {how}, in alternation with the uncompressed model; median over pairs with an interval of 94 % or "
        "more; ~ marks times that are noisy, drifting or uneven."
    )


def _score(record: Record, column: Column, metrics: Sequence[str]) -> Score | None:
    usable = [
        score for score in record.scores if score.task.removesuffix(_LOCAL) == column.task and score.metric in metrics
    ]
    return min(usable, key=lambda one: (metrics.index(one.metric), one.filter != "none", one.filter), default=None)


def _scaled(gap: Difference) -> Difference:
    return Difference(100 * gap.value, 100 * gap.low, 100 * gap.high, gap.p)


def series_of_column(filled: Filled, column: str) -> dict[str, list[tuple[float, Cell]]]:
    """Return the measured points of each series in one column, from left to right; the uncompressed model begins each.

    Args:
        filled: the rows of one model.
        column: name of the column.
    """
    base: list[tuple[float, Cell]] = []
    found: dict[str, list[tuple[float, Cell]]] = {}
    for row in filled.rows:
        cell = row.cells.get(column, Cell())
        if cell.ours is None or row.line.x is None:
            continue
        points = base if row.line.method is None else found.setdefault(row.line.label, [])
        points.append((row.line.x, cell))
    return {label: sorted([*base, *points], key=lambda point: point[0]) for label, points in found.items()}
