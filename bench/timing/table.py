"""Timings as tables in the terminal, and as a JSON file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.records.record import Interval, Timing
from bench.store.atomic import write_atomically
from bench.timing.intervals import verdict

Rows = Sequence[tuple[str, Timing]]
_MILLISECONDS = ("ttft_median_ms", "ttft_p99_ms", "itl_median_ms", "itl_p99_ms")


def _shown(interval: Interval | None) -> str:
    return f"{interval.median:.4g} [{interval.low:.4g}, {interval.high:.4g}]" if interval else ""


def _table(*heads: str) -> Table:
    table = Table()
    for head in heads:
        table.add_column(
            head, overflow="fold", min_width=10 if "base" in head else None
        )  # nothing is cut, nor "difference"
    return table


def _named(rows: Rows) -> Rows:
    """Return the rows by the last part of their paths, where that tells them apart."""
    short = [Path(name).name for name, _ in rows]
    return (
        [(name, timing) for name, (_, timing) in zip(short, rows, strict=True)] if len({*short}) == len(short) else rows
    )


def _compared(ratio: Interval | None, lower_is_better: bool = False) -> str:
    """Return a ratio with what it says; nothing for the base."""
    if ratio is None:
        return ""
    numbers = f"{ratio.median:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{numbers} {verdict(ratio, lower_is_better=lower_is_better)}"


def memory_table(rows: Rows) -> Table:
    """Return weights, parameters in memory, key-value room and peak of each model."""
    table = _table("checkpoint", "files MB", "parameters in memory MB", "KV-cache tokens", "peak MB")

    def megabytes(value: int | None) -> str:
        return f"{value / 1e6:,.1f}" if value is not None else ""

    for name, timing in _named(rows):
        numbers = (timing.weights_bytes, timing.parameter_bytes)
        tokens = f"{timing.kv_tokens:,}" if timing.kv_tokens is not None else ""
        table.add_row(name, *map(megabytes, numbers), tokens, megabytes(timing.peak_bytes))
    return table


def offline_table(rows: Rows) -> Table:
    """Return one line for each model and batch size."""
    heads = ("checkpoint", "batch", "prefill tokens/s", "decode tokens/s", "prefill / base", "decode / base", "remark")
    table = _table(*heads)
    for name, timing in _named(rows):
        if timing.reason:
            table.add_row(name, "", "", "", "", "", timing.reason)
        for one in timing.batches:
            speeds, ratios = (one.prefill, one.decode), (one.prefill_ratio, one.decode_ratio)
            cells = [*map(_shown, speeds), *map(_compared, ratios)]
            table.add_row(name, str(one.batch), *cells, ", ".join(one.marks))
    return table


def online_table(rows: Rows) -> Table:
    """Return one line for each model, request rate and metric."""
    table = _table("checkpoint", "requests/s sent", "metric", "value", "ratio to base", "remark")
    for name, timing in _named(rows):
        if timing.reason:
            table.add_row(name, "", "", "", "", timing.reason)
        for one in timing.online:
            rate = "all at once" if one.rate is None else f"{one.rate:g}"
            for metric, value in one.metrics.items():
                ratio = _compared(one.ratios.get(metric), metric in _MILLISECONDS)
                table.add_row(name, rate, metric, _shown(value), ratio, ", ".join(one.marks.get(metric, ())))
    return table


def write_timings(rows: Rows, path: Path) -> None:
    """Write all numbers to ``path`` in one atomic step.

    Raises:
        RecordError: the disk refuses.
    """
    document: list[dict[str, Any]] = [{"checkpoint": name, **timing.model_dump(mode="json")} for name, timing in rows]
    write_atomically(path, json.dumps(document, indent=2, sort_keys=True), remedy="free space or choose another file")
