"""The columns of the page's table: what stands in a cell, what it sorts by, and which columns are toggled together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.formatting import NONE, count, fixed, interval, known, p_value, percent, significant, size
from analysis.protocol import ACCURACIES, PUBLISHED_AVERAGES
from analysis.table import (
    DENSE,
    Row,
    average_text,
    difference_marks,
    found_text,
    is_dense,
    rank_text,
    settings_text,
    task_error,
    task_text,
    text_of,
)

Text = Callable[[Row], str]


def _nothing(_: Row) -> str:
    return ""


@dataclass(frozen=True)
class Head:
    """A column of the page's table.

    Args:
        value: what the column sorts by; None for missing.
        sub: small second line of a cell.
        group: key of ``GROUPS``, or empty for always shown.
        hint: shown when the pointer rests on a cell.
    """

    name: str
    head: str
    doc: str
    text: Text
    value: Callable[[Row], Any]
    sub: Text = _nothing
    group: str = ""
    hint: Text = _nothing


GROUPS = {"sizes": "sizes", "speed": "speed", "tasks": "tasks", "published": "papers' averages"}
_RATIOS = {
    "count": "experts",
    "expert": "expert parameters",
    "total": "all parameters",
    "bytes": "bytes",
    "channels": "channels",
}


def _number(name: str, head: str, doc: str, text: Callable[[Any], str], group: str = "", sub: Text = _nothing) -> Head:
    return Head(name, head, doc, lambda row: text(row[name]), lambda row: row[name], sub, group)


def _ends(name: str, scale: float, digits: int, signed: bool = False) -> Text:
    return lambda row: interval(row[f"{name}_low"], row[f"{name}_high"], scale, digits, signed)


def retention(row: Row) -> str:
    """Return the retention, with ``▼`` below the floor."""
    return percent(row["retention"]) + (" ▼" if row["below_floor"] is True else "")


def _difference(row: Row) -> str:
    return f"{percent(row['difference'], signed=True)} {difference_marks(row)}".rstrip()


def _tasks(value: Any) -> str:
    return str(value) if known(value) else NONE


def _share(value: Any) -> str:
    return fixed(value, 3)


def not_timed(row: Row) -> str:
    """Return why a run has no speed; empty where it has one or nothing is said."""
    return "" if known(row["decode"]) or known(row["prefill"]) else text_of(row["timing_reason"])


def _speed(name: str, head: str, doc: str) -> Head:
    ends = _ends(name, 1, 2)

    def sub(row: Row) -> str:
        if not_timed(row):
            return "not timed"
        marks = text_of(row["timing_marks"]) if known(row[name]) else ""
        return "" if is_dense(row) else f"{ends(row)} {marks}".strip()

    def value(row: Row) -> Any:
        return None if is_dense(row) else row[name]

    return Head(
        name, head, doc, lambda row: DENSE if is_dense(row) else fixed(row[name], 2), value, sub, hint=not_timed
    )


def _of(name: str) -> Callable[[Row], Any]:
    return lambda row: row[name]


CORE: tuple[Head, ...] = (
    Head("rank", "Rank", "place within the model; ≈ within noise of the next", rank_text, _of("rank")),
    Head("method", "Method", "opens the run", _of("title"), _of("title"), settings_text),
    Head("model", "Model", "model that was compressed", _of("model"), _of("model"), hint=_of("model")),
    Head(
        "found_by",
        "Found by",
        "study and trial that found the plan; the pointer shows its objectives and budget there",
        found_text,
        _of("found_by"),
        hint=lambda row: text_of(row["found_by"]),
    ),
    _number("keep", "Keep %", "effective keep: share of routed-expert parameters that remain", percent),
    _number("bytes", "Size", "tensor bytes on disk", size),
    Head(
        "average",
        "Average %",
        "mean over tasks ± standard error, or ± half of the 95 % interval over seeds",
        average_text,
        _of("average"),
    ),
    Head(
        "retention",
        "Retention %",
        "average over the base's, 95 % interval; ▼ below the floor",
        retention,
        _of("retention"),
        _ends("retention", 100, 1),
    ),
    Head(
        "difference",
        "Δ base",
        "difference to the base in points, 95 % interval; † survives Holm within model and share; "
        "° interval of an earlier version",
        _difference,
        _of("difference"),
        _ends("difference", 100, 1, signed=True),
    ),
    _number("difference_p", "p", "p-value of no difference to the base", p_value),
    _number("worse", "Worse", "tasks significantly worse than the base, after Holm", _tasks),
    _number("perplexity_retention", "Perpl. ×", "perplexity of the base over that of the run, geometric mean", _share),
    _speed("prefill_ratio", "Prefill ×", "prefill speed over the base's, 95 % interval, and why it deserves doubt"),
    _speed("decode_ratio", "Decode ×", "decode speed over the base's, 95 % interval, and why it deserves doubt"),
    *(
        _number(f"keep_{name}", f"Keep {what} %", f"share of {what} that remains", percent, "sizes")
        for name, what in _RATIOS.items()
    ),
    _number("parameters", "Parameters", "all weights", count, "sizes"),
    _number("routed_parameters", "Routed", "weights of the routed experts", count, "sizes"),
    _number("active_parameters", "Active", "weights used for one token", count, "sizes"),
    _number("flops", "FLOPs", "of one 2048-token forward, batch 1", count, "sizes"),
    _number("prefill", "Prefill tok/s", "prompt tokens per second", significant, "speed", _ends("prefill", 1, 0)),
    _number("decode", "Decode tok/s", "generated tokens per second", significant, "speed", _ends("decode", 1, 0)),
    _number("peak_bytes", "Peak memory", "of the serving process", size, "speed"),
    _number("weights_bytes", "Weights served", "safetensors files", size, "speed"),
    Head("timing_reason", "Not timed because", "why there is no speed", not_timed, not_timed, group="speed"),
    *(_number(name, name, rule.source, percent, "published") for name, rule in PUBLISHED_AVERAGES.items()),
)


def heads(rows: Sequence[Row], scores: Sequence[Row]) -> list[Head]:
    """Return the columns that hold something in at least one of ``rows``, with one for each task of ``scores``."""
    return [head for head in (*CORE, *_task_heads(scores)) if any(head.value(row) not in (None, "") for row in rows)]


def _task_heads(scores: Sequence[Row]) -> list[Head]:
    by_task: dict[str, dict[str, Row]] = {}
    for row in scores:
        if row["headline"]:
            by_task.setdefault(row["task"], {})[row["id"]] = row
    return [_task_head(task, found) for task, found in sorted(by_task.items())]


def _task_head(task: str, found: Mapping[str, Row]) -> Head:
    def text(row: Row) -> str:
        score = found.get(row["id"])
        return task_text(score["value"], task_error(score), score["metric"] in ACCURACIES) if score else NONE

    def value(row: Row) -> Any:
        return found[row["id"]]["value"] if row["id"] in found else None

    metrics = ", ".join(sorted({row["metric"] for row in found.values()}))
    return Head(f"task {task}", task, f"{metrics} ± standard error", text, value, group="tasks")
