"""The columns of the frame, as data: name, unit, type, meaning and where the value comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.comparison import Comparison
from analysis.knobs import TRAINING, compact, knobs_text, shown_knobs
from analysis.protocol import PUBLISHED_AVERAGES
from bench.records.earlier import stages_of
from bench.records.record import CostInfo, Interval, Record, Timing

Kind = Literal["string", "float64", "Int64", "boolean"]


@dataclass(frozen=True)
class Column:
    """One column of the frame.

    Args:
        get: value of a row, None where there is none; None for columns that need the other rows (see ``ranking``).
        in_tables: False for what figures alone need.
    """

    name: str
    kind: Kind
    unit: str
    doc: str
    get: Callable[[Comparison], Any] | None = None
    in_tables: bool = True


def _cost(name: str) -> Callable[[Comparison], Any]:
    def get(row: Comparison) -> Any:
        return None if row.record.cost is None else getattr(row.record.cost, name)

    return get


def _kept(name: str) -> Callable[[Comparison], float | None]:
    def get(row: Comparison) -> float | None:
        return None if row.record.ratios is None else 1.0 - float(getattr(row.record.ratios, name))

    return get


def _timing(name: str) -> Callable[[Comparison], Any]:
    def get(row: Comparison) -> Any:
        return None if row.record.timing is None else getattr(row.record.timing, name)

    return get


def _speed(name: str, end: str) -> Callable[[Comparison], float | None]:
    def get(row: Comparison) -> float | None:
        timing: Timing | None = row.record.timing
        interval: Interval | None = None if timing is None else getattr(timing, name)
        return None if interval is None else float(getattr(interval, end))

    return get


def _recovery(name: str) -> Callable[[Comparison], Any]:
    def get(row: Comparison) -> Any:
        return None if row.record.recovery is None else getattr(row.record.recovery, name)

    return get


def _found_by(row: Comparison) -> str | None:
    found = row.record.found_by
    if found is None:
        return None
    where = found.study if found.trial is None else f"{found.study} #{found.trial}"
    told = [f"{name}={value:.4g}" for name, value in found.scores.items()]
    told += [f"{name}<={share:.4g}" for name, share in found.budget.items()]
    return f"{where}: {', '.join(told)}" if told else where


def _marks(row: Comparison) -> str | None:
    return ", ".join(row.record.timing.marks) or None if row.record.timing else None


def _difference(name: str) -> Callable[[Comparison], float | None]:
    def get(row: Comparison) -> float | None:
        return None if row.difference is None else float(getattr(row.difference, name))

    return get


def _retention(end: str | None) -> Callable[[Comparison], float | None]:
    def get(row: Comparison) -> float | None:
        base = row.base_average[0]
        if not base:
            return None
        if end is None:
            average = row.average[0]
            return None if average is None else average / base
        return None if row.difference is None else 1.0 + float(getattr(row.difference, end)) / base

    return get


def _flops_share(row: Comparison) -> float | None:
    cost: CostInfo | None = row.record.cost
    base = row.base.cost if row.base else None
    return cost.flops / base.flops if cost and base and base.flops else None


def _average_of(name: str) -> Callable[[Comparison], float | None]:
    def get(row: Comparison) -> float | None:
        chosen = PUBLISHED_AVERAGES[name].of(row.record.scores) if row.record.status == "complete" else None
        return None if chosen is None else sum(score.value for score in chosen) / len(chosen)

    return get


def _seed_half(row: Comparison) -> float | None:
    mean = row.average_over_seeds
    return None if mean is None else mean.half


_RATIOS = {
    "count": "routed experts",
    "expert": "routed-expert parameters",
    "total": "all parameters",
    "bytes": "bytes on disk",
    "channels": "routed experts' channels",
}
_SIZES = {
    "bytes": ("B", "tensor bytes on disk"),
    "parameters": ("parameters", "all weights"),
    "routed_parameters": ("parameters", "weights of the routed experts"),
    "active_parameters": ("parameters", "weights used for one token"),
    "flops": ("FLOP", "FLOPs of one 2048-token forward at batch size 1"),
}
_SPEEDS = {
    "prefill": ("tokens/s", "prompt tokens per second under vLLM, median"),
    "decode": ("tokens/s", "generated tokens per second under vLLM, median"),
    "prefill_ratio": ("1", "prefill speed over the base's, pair by pair, median"),
    "decode_ratio": ("1", "decode speed over the base's, pair by pair, median"),
}


def _speed_columns() -> list[Column]:
    columns = []
    for name, (unit, doc) in _SPEEDS.items():
        columns.append(Column(name, "float64", unit, doc, _speed(name, "median")))
        for end in ("low", "high"):
            what = f"{'lower' if end == 'low' else 'upper'} end of its 95 % interval"
            columns.append(Column(f"{name}_{end}", "float64", unit, what, _speed(name, end)))
    return columns


COLUMNS: tuple[Column, ...] = (
    Column("id", "string", "", "digest of everything that determines the run", lambda r: r.record.id),
    Column("group", "string", "", "runs that belong together", lambda r: r.record.group),
    Column("status", "string", "", "complete, refused, failed or cancelled", lambda r: r.record.status),
    Column("reason", "string", "", "why the run was refused, failed or cancelled", lambda r: r.record.reason),
    Column("model", "string", "", "model that was compressed", lambda r: r.record.model.name),
    Column("family", "string", "", "its family", lambda r: r.record.model.family),
    Column("content", "string", "", "digest of its files", lambda r: r.record.model.content),
    Column("board", "string", "", "model and protocol within which runs rank", lambda r: r.board),
    Column("is_base", "boolean", "", "whether the run is the uncompressed model", lambda r: r.is_base),
    Column("rank", "Int64", "", "place by quality on its board, 1 the best; the base has none"),
    Column("tie_next", "boolean", "", "whether the difference in quality to the next rank is within noise"),
    Column(
        "next_other_seeds",
        "boolean",
        "",
        "whether the next rank was measured with other seeds, so that no noise is told",
    ),
    Column("method", "string", "", "registry name of the method", lambda r: r.record.method),
    Column(
        "stages",
        "string",
        "",
        "plan stages that the method writes",
        lambda r: ", ".join(stages_of(r.record)),
        in_tables=False,
    ),
    Column("title", "string", "", "method's name for tables", lambda r: r.record.title),
    Column("knobs", "string", "", "settings of the method", lambda r: knobs_text(r.record)),
    Column("variant", "string", "", "calibration text, where runs of the board differ in it"),
    Column("seeds", "Int64", "", "runs with different seeds that the row is the mean of", lambda r: r.runs),
    Column(
        "seed_set",
        "string",
        "",
        "their seeds, of the calibration text or else of the method's draws; empty where no seed matters",
        lambda r: ", ".join(map(str, r.seeds)),
    ),
    Column("plan", "string", "", "digest of the plan", lambda r: r.record.plan),
    Column("found_by", "string", "", "study and trial that found the plan, its objectives and budget there", _found_by),
    Column(
        "keep_asked", "float64", "1", "the method's own setting keep", lambda r: _number(r.record.knobs.get("keep"))
    ),
    Column("keep", "float64", "1", "effective keep: share of routed-expert parameters that remain", _kept("expert")),
    *(
        Column(f"keep_{name}", "float64", "1", f"share of {what} that remains", _kept(name))
        for name, what in _RATIOS.items()
    ),
    Column(
        "zeros",
        "float64",
        "1",
        "share of the stored routed-expert weights that were made zero; no bytes fall with it",
        lambda r: r.record.ratios.zeros if r.record.ratios else None,
    ),
    Column(
        "cold_experts",
        "Int64",
        "experts",
        "experts that were made from their weights alone, since no calibration token reached them",
        lambda r: r.record.cold_experts,
    ),
    Column("recovery", "string", "", "kind of training after compression; empty: none", _recovery("kind")),
    Column("recovery_tokens", "Int64", "tokens", "tokens trained on, repetitions counted", _recovery("tokens")),
    Column("recovery_seconds", "float64", "s", "CPU seconds of the training", _recovery("seconds")),
    *(Column(name, "Int64", unit, doc, _cost(name)) for name, (unit, doc) in _SIZES.items()),
    Column("flops_share", "float64", "1", "flops over the base's", _flops_share),
    Column("tasks", "Int64", "tasks", "tasks in the average", lambda r: len(r.accuracies) if r.scores else None),
    Column(
        "average", "float64", "1", "mean over the tasks that run and base have, and over seeds", lambda r: r.average[0]
    ),
    Column(
        "average_error", "float64", "1", "its standard error over items, sqrt(sum se^2) / n", lambda r: r.average[1]
    ),
    Column(
        "average_seeds",
        "float64",
        "1",
        "half of the 95 % interval of the average over seeds, Student t; empty for one seed",
        _seed_half,
    ),
    Column("base_average", "float64", "1", "the base's mean over the same tasks", lambda r: r.base_average[0]),
    Column("retention", "float64", "1", "average over base_average", _retention(None)),
    Column(
        "retention_low",
        "float64",
        "1",
        "lower end of its 95 % interval, the base's average taken as exact",
        _retention("low"),
    ),
    Column("retention_high", "float64", "1", "upper end of that interval", _retention("high")),
    Column("below_floor", "boolean", "", "whether retention is below the floor of the report"),
    Column("difference", "float64", "1", "average minus base_average, combined from the tasks", _difference("value")),
    Column("difference_low", "float64", "1", "lower end of its 95 % interval", _difference("low")),
    Column("difference_high", "float64", "1", "upper end of its 95 % interval", _difference("high")),
    Column(
        "difference_p",
        "float64",
        "1",
        "p-value of no difference; < 0.05: the interval leaves out 0",
        _difference("p"),
    ),
    Column("difference_p_holm", "float64", "1", "the same after Holm's correction over the model's runs at this share"),
    Column("difference_family", "Int64", "runs", "how many runs that is"),
    Column("survives_holm", "boolean", "", "whether difference_p_holm is below 0.05"),
    Column(
        "old_intervals",
        "boolean",
        "",
        "whether an interval of a task is the percentile bootstrap of earlier versions, too short where few items changed",
        lambda r: r.old_intervals,
    ),
    Column(
        "pairing", "string", "", "paired, unpaired or mixed: how the tasks' differences were made", lambda r: r.pairing
    ),
    Column(
        "worse", "Int64", "tasks", "tasks significantly worse than the base, p < 0.05 after Holm", lambda r: r.worse()
    ),
    Column("worse_raw", "Int64", "tasks", "the same without correction", lambda r: r.worse(adjusted=False)),
    Column(
        "perplexity_retention",
        "float64",
        "1",
        "geometric mean over perplexity tasks of base over run",
        lambda r: r.perplexity_retention[0],
    ),
    Column("perplexity_retention_error", "float64", "1", "its standard error", lambda r: r.perplexity_retention[1]),
    Column("quality", "float64", "1", "what ranks: average, or perplexity_retention where no task has an accuracy"),
    Column("quality_error", "float64", "1", "its standard error, over items and seeds"),
    Column("pareto", "boolean", "", "whether on its board's front of quality against bytes"),
    *(Column(name, "float64", "1", rule.source, _average_of(name)) for name, rule in PUBLISHED_AVERAGES.items()),
    *_speed_columns(),
    Column("weights_bytes", "Int64", "B", "safetensors files as served", _timing("weights_bytes")),
    Column("peak_bytes", "Int64", "B", "peak memory of the serving process", _timing("peak_bytes")),
    Column("timing_reason", "string", "", "why nothing was timed", _timing("reason")),
    Column(
        "timing_realisation",
        "string",
        "",
        "compressed, or dense: values or zeros stand in the place of the compressed form, and no speed is claimed",
        _timing("realisation"),
    ),
    Column("timing_marks", "string", "", "why the speeds deserve doubt: noisy, drifting, uneven, correlated", _marks),
    Column(
        "target",
        "string",
        "",
        "what was known beforehand about the engine: served, dense or refused",
        lambda r: r.record.target.outcome if r.record.target else None,
    ),
    Column("realisation", "string", "", "how the compressed form was run for quality", lambda r: r.record.realisation),
    Column("corpus", "string", "", "calibration text", lambda r: r.record.corpus.name if r.record.corpus else None),
    Column("seconds", "float64", "s", "CPU seconds of all stages run here", lambda r: _total(r.record)),
    Column("created", "string", "", "UTC time of the end of the run", lambda r: r.record.created),
)


def variants(rows: Sequence[Comparison]) -> list[str | None]:
    """Return for each row what its title and shown knobs leave open: knobs of a recipe or training, and the calibration text.

    Only what differs among rows of the board is told; None where nothing does.
    """
    parts = zip(_other_knobs(rows), _corpora(rows), strict=True)
    return ["; ".join(text for text in texts if text) or None for texts in parts]


def _other_knobs(rows: Sequence[Comparison]) -> list[str | None]:
    """Return the knobs that are not shown and differ among rows of one board that look alike without them."""
    looks = [(r.board, r.record.title, shown_knobs(r.record.method, knobs_text(r.record))) for r in rows]
    alike: dict[tuple[str, str, str], list[dict[str, str]]] = {}
    for look, row in zip(looks, rows, strict=True):
        alike.setdefault(look, []).append(_hidden(row.record))
    found: list[str | None] = []
    for look, row in zip(looks, rows, strict=True):
        own, others = _hidden(row.record), alike[look]
        told = [f"{knob}={value}" for knob, value in own.items() if any(one.get(knob) != value for one in others)]
        found.append(", ".join(told) or None)
    return found


def _hidden(record: Record) -> dict[str, str]:
    """Return the knobs that ``shown_knobs`` leaves out; a method that is no recipe hides those of its training alone."""
    knobs = sorted((name, value) for name, value in record.knobs.items() if value is not None)
    return {name: compact(value) for name, value in knobs if record.method == "recipe" or name.startswith(TRAINING)}


def _corpora(rows: Sequence[Comparison]) -> list[str | None]:
    names: dict[str, set[str]] = {}
    for row in rows:
        if row.record.corpus is not None:
            names.setdefault(row.board, set()).add(row.record.corpus.name)
    return [f"on {row.record.corpus.name}" if row.record.corpus and len(names[row.board]) > 1 else None for row in rows]


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _total(record: Record) -> float | None:
    return sum(record.seconds[stage] for stage in sorted(record.seconds)) if record.seconds else None


def describe() -> list[tuple[str, str, str]]:
    """Return name, unit and meaning of every column of a table."""
    return [(column.name, column.unit, column.doc) for column in COLUMNS if column.in_tables]
