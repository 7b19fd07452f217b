"""Measured speed beside what was predicted from counts: FLOPs for prefill, active parameters and bytes for decode."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.averaging import average_seeds
from analysis.columns import variants
from analysis.comparison import Comparison, compare
from analysis.formatting import NONE, fixed, interval, known
from analysis.table import DENSE, Row, run_name, text_of
from analysis.typed import WHO, Line, lines_by_board, typed, who
from bench.records.record import BatchTiming, CostInfo, Interval, Record, Timing

SPEED_COLUMNS: dict[str, str] = {
    **WHO,
    "variant": "string",
    "batch": "Int64",
    **{f"prefill_ratio{end}": "float64" for end in ("", "_low", "_high")},
    "flops_ratio": "float64",
    **{f"decode_ratio{end}": "float64" for end in ("", "_low", "_high")},
    "active_ratio": "float64",
    "bytes_ratio": "float64",
    "marks": "string",
    "realisation": "string",
    "reason": "string",
    "told": "string",
}
"""Columns with their types. ``prefill_ratio``, ``decode_ratio``: speed over the base's, measured, with their intervals;
``flops_ratio``, ``active_ratio``, ``bytes_ratio``: the base's count over the run's, so that more is faster in all of them;
``told``: what a measured interval that leaves its prediction out says, in a sentence."""

PREDICTIONS = (("prefill", "flops_ratio", "FLOPs"), ("decode", "active_ratio", "active parameters"))
"""Phase, column of its prediction, and what that is made from."""


def speed_frame(records: Iterable[Record], *, compared: Sequence[Comparison] | None = None) -> pd.DataFrame:
    """Return one row for each compressed run and batch size that was timed, or that has a reason why it was not.

    Args:
        records: in any order.
        compared: the records beside their bases, by id, where that is known.
    """
    given = sorted(records, key=lambda one: one.id)
    costs = {one.model.content: one.cost for one in given if one.method is None and one.cost is not None}
    rows = average_seeds(compare(given) if compared is None else compared)
    data = []
    for row, variant in zip(rows, variants(rows), strict=True):
        record, timing = row.record, row.record.timing
        if row.is_base or timing is None or record.status != "complete":
            continue
        base = row.base.cost if row.base and row.base.cost else costs.get(record.model.content)
        for batch in timing.batches or (None,):
            data.append(_values(row, timing, batch, base) | {"variant": variant})
    for values in data:
        values["told"] = sentence(values)
    data.sort(key=lambda one: (one["model"], one["board"], one["title"], one["knobs"], one["batch"] or 0, one["id"]))
    return typed(data, SPEED_COLUMNS)


def _values(row: Comparison, timing: Timing, batch: BatchTiming | None, base: CostInfo | None) -> dict[str, Any]:
    own = row.record.cost
    speeds = batch or timing
    values: dict[str, Any] = {
        **who(row),
        "batch": batch.batch if batch else timing.protocol.get("batch"),
        "marks": ", ".join(speeds.marks) or None,
        "realisation": timing.realisation,
        "reason": timing.reason,
    }
    for phase in ("prefill", "decode"):
        ratio: Interval | None = getattr(speeds, f"{phase}_ratio")
        values[f"{phase}_ratio"] = ratio.median if ratio else None
        values[f"{phase}_ratio_low"] = ratio.low if ratio else None
        values[f"{phase}_ratio_high"] = ratio.high if ratio else None
    for name, count in (("flops", "flops"), ("active", "active_parameters"), ("bytes", "bytes")):
        counts = [getattr(one, count) if one else None for one in (base, own)]
        values[f"{name}_ratio"] = counts[0] / counts[1] if counts[0] and counts[1] else None
    return values


def sentence(row: Row) -> str | None:
    """Return which measured speeds leave their predictions out of their intervals, on which side and by how much.

    None where there is nothing to say: nothing measured, nothing predicted, predictions inside, or values in the place of
    the compressed form.
    """
    if row["realisation"] == DENSE:
        return None
    parts = []
    for phase, prediction, source in PREDICTIONS:
        low, high, predicted = row[f"{phase}_ratio_low"], row[f"{phase}_ratio_high"], row[prediction]
        if not (known(low) and known(high) and known(predicted)) or low <= predicted <= high:
            continue
        off = 100 * abs(row[f"{phase}_ratio"] / predicted - 1)
        side = "slower" if high < predicted else "faster"
        parts.append(
            f"{phase} is {fixed(off, 0 if off >= 10 else 1)} % {side} than {source} predict ({fixed(predicted, 2)} ×)"
        )
    return "; ".join(parts) or None


def verdict(row: Row, phase: str) -> str:
    """Return a measured ratio with its interval and, where that holds 1, the words ``no difference``."""
    if row["realisation"] == DENSE:
        return DENSE
    if not known(row[f"{phase}_ratio"]):
        return NONE
    low, high = row[f"{phase}_ratio_low"], row[f"{phase}_ratio_high"]
    same = " no difference" if low <= 1.0 <= high else ""
    return f"{fixed(row[f'{phase}_ratio'], 2)} {interval(low, high, 1.0, 2)}{same}"


NOTE = (
    "Predictions: the base's count over the run's, FLOPs for prefill, active parameters for decode. A remark tells where the "
    "interval of a measured ratio leaves its prediction out, by the distance of the median; `no difference`: the interval holds "
    "1. `dense`: the engine held values or zeros in the place of the compressed form."
)
"""How to read the table."""

HEAD = (
    "method",
    "batch",
    "prefill ×",
    "FLOPs, base/run",
    "decode ×",
    "active parameters, base/run",
    "bytes, base/run",
    "marks",
    "realisation",
    "remark",
)


def speed_lines(frame: pd.DataFrame) -> dict[str, list[Line]]:
    """Return the cells under ``HEAD`` of the rows of each board."""
    return lines_by_board(frame, _line)


def _line(row: Row) -> Line:
    return (
        run_name(row),
        str(row["batch"]) if known(row["batch"]) else "",
        verdict(row, "prefill"),
        fixed(row["flops_ratio"], 2),
        verdict(row, "decode"),
        fixed(row["active_ratio"], 2),
        fixed(row["bytes_ratio"], 2),
        text_of(row["marks"]),
        text_of(row["realisation"]),
        text_of(row["reason"] or row["told"]),
    )
