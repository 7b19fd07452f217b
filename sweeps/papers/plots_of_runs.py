"""Plots of scores and of times: tasks one by one, the loss on running text, and speed by length."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from analysis.papers.filling import Filled
from analysis.papers.loss_curves import LossPoint, loss_curves
from analysis.papers.plot_text import plot_csv
from analysis.papers.sheet import Sheet
from analysis.papers.speed_curves import Ratio, speed_curves
from analysis.papers.tables import about, csv_text
from analysis.papers.task_curves import task_curves
from bench.records.record import Record
from bench.settings.strict import validated
from bench.settings.timing_settings import TimingConfig
from sweeps.papers.asked import Asked, asked
from sweeps.papers.asked import filled as words_filled
from sweeps.papers.laid_out import sheet
from sweeps.papers.recorded import filled_blocks, runs_of
from sweeps.papers.shelf import task_sizes
from sweeps.papers.stand_in import Conditions, StandIn
from sweeps.papers.wanted import Drawn, Wanted

_BARS = "Bars are 1.96 standard errors over the items."
_INTERVALS = "Bars are intervals of the median over pairs, of 95 % or more (docs/timing.md), cut at the frame."
_UNTIMED = TimingConfig(enabled=False)


def tasks(wanted: Wanted) -> Drawn:
    """Draw the series of a figure task by task."""
    laid, rows = _laid(wanted, wanted.settings)
    filled = filled_blocks(laid, rows, wanted.settings, wanted.source, _UNTIMED)
    pictures = task_curves(filled, wanted.exhibit.x, chances(wanted.settings))
    caption = [f"{_name(one)}: {about(one)}." for one in filled if one.items[1]]
    missing = [text for one in filled if one.block.model for text in one.missing]
    return Drawn(pictures, csv_text(filled).encode(), [*caption, _BARS], laid.departs, missing, runs_of(filled))


def chances(settings: Conditions) -> dict[str, float]:
    """Return the percent that guessing gets right in each task with given answers, where their number is known."""
    sizes = {name: task_sizes().get(name.removesuffix("_local")) for name in settings.evaluation.tasks}
    return {
        name.removesuffix("_local"): 100 / size.requests
        for name, size in sizes.items()
        if size is not None and size.requests > 1
    }


def loss(wanted: Wanted) -> Drawn:
    """Draw the loss on running text along the series of a figure."""
    pocket = any(one.pocket for one in wanted.models)
    task = wanted.plot.pocket_task if pocket else wanted.plot.task
    laid, rows = _laid(wanted, wanted.settings)
    filled = filled_blocks(laid, rows, wanted.settings, wanted.source, _UNTIMED)
    totals = [units(wanted, one) for one in wanted.models]
    pairs = zip(filled, totals, strict=True)
    models = {_name(one): losses(one, task or "", total) for one, total in pairs if one.block.model}
    pictures = loss_curves({name: lines for name, lines in models.items() if lines}, wanted.exhibit.x, wanted.plot.y)
    lines = [
        (name, label, point.x, point.loss, point.error)
        for name, series in models.items()
        for label, points in series.items()
        for point in points
    ]
    numbers = plot_csv(("model", "series", "experts_left", "nats_per_word", "stderr"), lines)
    caption = [f"{_name(one)}: {about(one)}." for one in filled if one.items[1]]
    missing = [text for one in filled if one.block.model for text in one.missing]
    missing += [
        f"{name}: its uncompressed model was not scored by {task}" for name, lines in models.items() if not lines
    ]
    departs = [text for text in laid.departs if not text.startswith(("evaluation.limit", "evaluation.tasks"))]
    return Drawn(pictures, numbers, [f"Task {task}.", *caption, _BARS], departs, missing, runs_of(filled))


def units(wanted: Wanted, one: StandIn) -> int:
    """Return how many units a model of a figure has along its horizontal axis.

    Args:
        wanted: the figure.
        one: the model.
    """
    assert wanted.exhibit.points is not None
    return int(words_filled(str(wanted.exhibit.points.total), one.words))


def losses(filled: Filled, task: str, total: int) -> dict[str, list[LossPoint]]:
    """Return the points of each series, the uncompressed model first; the loss of a word is the logarithm of its perplexity.

    Where the uncompressed model has no loss there are no series, since nothing could be held against it.

    Args:
        filled: the rows of one model.
        task: that scores running text.
        total: experts of a layer of the uncompressed model.
    """
    found: dict[str, list[LossPoint]] = {}
    base: list[LossPoint] = []
    for row in filled.rows:
        cell = row.cells.get(task)
        if cell is None or cell.ours is None or row.line.x is None:
            continue
        error = None if cell.error is None else cell.error / cell.ours
        point = LossPoint(total - row.line.x, math.log(cell.ours), error)
        (base if row.line.method is None else found.setdefault(row.line.label, [])).append(point)
    return {label: sorted([*base, *points], key=lambda point: -point.x) for label, points in found.items() if base}


def lengths(wanted: Wanted) -> Drawn:
    """Draw how much faster each row generates than the uncompressed model, by the length of prompt and answer."""
    laid, rows = _laid(wanted, wanted.settings)
    pocket = any(one.pocket for one in wanted.models)
    found: dict[str, dict[str, list[Ratio]]] = {}
    missing: list[str] = []
    runs: dict[str, float] = {}
    for timing in timings(wanted, pocket):

        def admitted(record: Record, timing: TimingConfig = timing) -> bool:
            return timed_as(record, timing)

        source = _AloneOnMachine(wanted)
        blocks = filled_blocks(laid, rows, wanted.settings, source, timing, admitted)
        runs |= runs_of(blocks)
        for one in blocks:
            if one.block.model:
                lines = found.setdefault(_name(one), {})
                missing += ratios(one, timing, lines)
    pictures = speed_curves({name: lines for name, lines in found.items() if lines}, wanted.exhibit.x, wanted.plot.y)
    points = [
        (name, label, point.length, point.median, point.low, point.high, point.pairs, ", ".join(point.marks))
        for name, series in found.items()
        for label, line in series.items()
        for point in line
    ]
    heads = ("model", "row", "length", "decode_speed_up", "low", "high", "pairs", "marks")
    caption = [_protocol(timings(wanted, pocket)[0]), _INTERVALS]
    if marked := sum(bool(point.marks) for series in found.values() for line in series.values() for point in line):
        caption.append(f"{marked} of {len(points)} ratios are marked as noisy, drifting or uneven there.")
    departs = [text for text in laid.departs if not text.startswith("evaluation.")]
    if shorter := _shorter(wanted, pocket):
        departs.insert(0, shorter)
    return Drawn(pictures, plot_csv(heads, points), caption, departs, missing, runs)


def timed_as(record: Record, timing: TimingConfig) -> bool:
    """Return whether a run was timed with these lengths and this batch, or was to be, and could not.

    Args:
        record: the run.
        timing: how speed is measured.
    """
    if record.timing is None:
        return False
    stated = record.timing.protocol
    if not stated:
        return record.timing.reason is not None
    wanted = (timing.prompt, timing.generate, timing.batches[0])
    batch = stated.get("batch")
    first = batch[0] if isinstance(batch, list | tuple) and batch else batch
    return (stated.get("prompt"), stated.get("generate"), first) == wanted


class _AloneOnMachine:
    """The source of a figure, with one process at a time, since times need the machine to themselves."""

    def __init__(self, wanted: Wanted) -> None:
        source = wanted.source
        self.store, self.run, self.given = source.store, source.run, source.given
        self.machine: Mapping[str, object] = {**source.machine, "workers": 1}


def timings(wanted: Wanted, pocket: bool) -> list[TimingConfig]:
    """Return how each length of a figure is timed.

    Args:
        wanted: the figure.
        pocket: whether pocket models are measured.

    Raises:
        ConfigError: a setting of the timing is not allowed.
    """
    plot = wanted.plot
    stated = {**plot.timing, **(plot.pocket_timing if pocket else {}), "enabled": True}
    chosen = plot.pocket_lengths if pocket else plot.lengths
    where = f"{wanted.paper.name} {wanted.name}: timing"
    return [validated({**stated, "prompt": length, "generate": length}, TimingConfig, where) for length in chosen]


def ratios(filled: Filled, timing: TimingConfig, lines: dict[str, list[Ratio]]) -> list[str]:
    """Add the ratios of one length to ``lines`` and return a sentence for each row without one.

    Args:
        filled: the rows of one model, timed at that length.
        timing: how.
        lines: ratios so far, by label of a row.
    """
    missing = []
    for row in filled.rows:
        if row.line.method is None and row.missing is None:
            continue
        record = row.record
        times = record.timing if record is not None else None
        ratio = times.decode_ratio if times is not None else None
        if ratio is not None and times is not None:
            point = Ratio(timing.prompt, ratio.median, ratio.low, ratio.high, ratio.n, times.marks)
            lines.setdefault(row.line.label, []).append(point)
        else:
            why = row.missing or (times and times.reason) or "it was not timed"
            missing.append(f"{filled.block.title}, {row.line.label}, length {timing.prompt}: {why}")
    return missing


def _protocol(timing: TimingConfig) -> str:
    threads = "all threads" if timing.threads is None else f"{timing.threads} thread{'s' * (timing.threads > 1)}"
    return (
        f"Batch of {timing.batches[0]}, as many tokens generated as the prompt has, {timing.dtype}, {threads}, "
        f"{timing.repeats} pairs or more in alternation."
    )


def _shorter(wanted: Wanted, pocket: bool) -> str | None:
    if not pocket or wanted.plot.pocket_lengths == wanted.plot.lengths:
        return None
    here, theirs = (", ".join(map(str, one)) for one in (wanted.plot.pocket_lengths, wanted.plot.lengths))
    return f"Lengths: {here}; the paper: {theirs}."


def _laid(wanted: Wanted, settings: Conditions) -> tuple[Sheet, Sequence[tuple[StandIn, Sequence[Asked]]]]:
    rows = [(one, asked(wanted.paper.file, wanted.exhibit, one, settings)) for one in wanted.models]
    laid = sheet(wanted.paper, wanted.name, rows, settings)
    elsewhere = (*wanted.exhibit.departs, *wanted.paper.file.departs)
    return replace(laid, departs=tuple(text for text in laid.departs if text not in elsewhere)), rows


def _name(filled: Filled) -> str:
    return f"{filled.block.title} ({filled.block.model})"
