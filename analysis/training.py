"""Before and after training: each trained run beside the same compressed model untrained."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import pandas as pd

from analysis.averaging import average_seeds
from analysis.columns import variants
from analysis.comparison import Comparison, compare, seeds_of
from analysis.formatting import interval, percent, significant
from analysis.inference import Difference, average_difference, difference, difference_over_seeds
from analysis.knobs import TRAINING
from analysis.protocol import error_of, key
from analysis.table import Row, run_name
from analysis.typed import WHO, Line, lines_by_board, typed, who
from bench.records.record import Record, Score

TRAINING_COLUMNS: dict[str, str] = {
    **WHO,
    "variant": "string",
    "recovery": "string",
    "pairs": "Int64",
    "keep_bytes": "float64",
    "tasks": "Int64",
    "base_average": "float64",
    **{
        f"{when}{name}": "float64"
        for when in ("before", "after")
        for name in ("", "_error", "_difference", "_difference_low", "_difference_high")
    },
    "gain": "float64",
    "gain_low": "float64",
    "gain_high": "float64",
    "gain_p": "float64",
    "pairing": "string",
    "tokens": "float64",
    "seconds": "float64",
}
"""Columns with their types; shares are fractions of 1. ``id``: of the trained row; ``pairs``: seeds that it is the mean of;
``before_difference``: paired difference to the base before training; ``gain``: average after minus before, with a 95 %
interval made as ``pairing`` says (see ``gain``); ``tokens``, ``seconds``: trained on, and CPU time of the training."""

NOTE = (
    "Gain: average after minus average before, on the same items. Records hold no items, but tell how each of the two runs goes "
    "with the base on them. The interval (95 %, normal, errors of tasks added in squares) takes before and after as having "
    "nothing in common beyond that; where both fail on the same items that the base solves, it is too wide. Without comparisons "
    "with the base, the errors of the two runs are taken as independent."
)
"""How the interval of a gain is made."""


def training_frame(records: Iterable[Record], *, compared: Sequence[Comparison] | None = None) -> pd.DataFrame:
    """Return one row for each trained run whose compressed model was scored before training too; seeds are averaged.

    Two runs are a pair if they agree in model, method, knobs, plan, calibration tokens, seeds and scored items. Of several
    untrained ones, that of the same group is taken, else the latest.

    Args:
        records: in any order.
        compared: the records beside their bases, by id, where that is known.
    """
    known = compare(sorted(records, key=lambda one: one.id)) if compared is None else compared
    rows = [row for row in known if row.record.status == "complete"]
    untrained: dict[Hashable, list[Comparison]] = defaultdict(list)
    for row in rows:
        if row.record.recovery is None and not row.is_base:
            untrained[_compressed(row)].append(row)
    partners = {
        row.record.id: max(
            same, key=lambda one: (one.record.group == row.record.group, one.record.created, one.record.id)
        )
        for row in rows
        if row.record.recovery is not None and row.accuracies and (same := untrained[_compressed(row)])
    }
    texts = {row.record.id: text for row, text in zip(rows, variants(rows), strict=True)}
    found = []
    for row in average_seeds([row for row in rows if row.record.id in partners]):
        members: Sequence[Comparison] = getattr(row, "members", (row,))
        pairs = [(partners[member.record.id], member) for member in members]
        found.append(_values(row, pairs, texts[members[0].record.id]))
    found.sort(key=lambda one: (one["model"], one["board"], one["title"], -one["keep_bytes"], one["knobs"], one["id"]))
    return typed(found, TRAINING_COLUMNS)


def _compressed(row: Comparison) -> Hashable:
    """Return what a run shares with itself before training."""
    record = row.record
    own = sorted((name, repr(value)) for name, value in record.knobs.items() if not name.startswith(TRAINING))
    text = record.corpus.digest if record.corpus else None
    items = tuple(key(row.scores[task]) for task in row.accuracies)
    return (record.model.content, record.method, tuple(own), record.plan, text, seeds_of(record), items)


def _values(row: Comparison, pairs: Sequence[tuple[Comparison, Comparison]], variant: str | None) -> dict[str, Any]:
    record, count = row.record, len(pairs)
    recoveries = [after.record.recovery for _, after in pairs]
    gains = [gain(before, after) for before, after in pairs]
    whole = [one for one, _ in gains if one is not None]
    total = None if len(whole) < count else difference_over_seeds(whole) if count > 1 else whole[0]
    kinds = {kind for _, kind in gains}
    values: dict[str, Any] = {
        **who(row),
        "variant": variant,
        "recovery": record.recovery.kind if record.recovery else None,
        "pairs": count,
        "keep_bytes": None if record.ratios is None else 1.0 - record.ratios.bytes,
        "tasks": len(row.accuracies),
        "base_average": row.base_average[0],
        "gain": sum(_average(after) - _average(before) for before, after in pairs) / count,
        "gain_low": total.low if total else None,
        "gain_high": total.high if total else None,
        "gain_p": total.p if total else None,
        "pairing": kinds.pop() if len(kinds) == 1 else "mixed",
        "tokens": sum(one.tokens for one in recoveries if one) / count,
        "seconds": sum(one.seconds for one in recoveries if one) / count,
    }
    for when, place in (("before", 0), ("after", 1)):
        values |= _side(when, [pair[place] for pair in pairs])
    return values


def _side(when: str, runs: Sequence[Comparison]) -> dict[str, float | None]:
    """Return average and difference to the base over the runs of one side."""
    errors = [error for error in (run.average[1] for run in runs) if error is not None]
    parts = [part for part in (run.difference for run in runs) if part is not None]
    joint = None if len(parts) < len(runs) else difference_over_seeds(parts) if len(runs) > 1 else parts[0]
    return {
        when: sum(_average(run) for run in runs) / len(runs),
        f"{when}_error": sum(errors) / len(runs) if len(errors) == len(runs) else None,
        f"{when}_difference": joint.value if joint else None,
        f"{when}_difference_low": joint.low if joint else None,
        f"{when}_difference_high": joint.high if joint else None,
    }


def _average(row: Comparison) -> float:
    value = row.average[0]
    assert value is not None  # only runs with accuracies are paired
    return value


def gain(before: Comparison, after: Comparison) -> tuple[Difference | None, str | None]:
    """Return the difference of two runs' averages on the same items, and how its errors were made.

    ``through the base``: with s, s', s0 the standard errors of a task's scores before, after and of the base, and d, d' those of
    the paired differences to the base, the covariances with the base are c = (s² + s0² - d²) / 2 and c' alike. If before and
    after have nothing in common beyond the base, their own covariance is c c' / s0², and var(gain) = s² + s'² - 2 c c' / s0².
    ``unpaired``: c = 0, where a task has no paired difference or the two have other bases. None where errors are missing.
    """
    parts, kinds = [], set()
    for task in after.accuracies:
        first, second = before.scores[task], after.scores[task]
        errors = error_of(first), error_of(second)
        if errors[0] is None or errors[1] is None:
            return None, None
        covariance, kind = 0.0, "unpaired"
        shared_errors = _paired_error(before, first), _paired_error(after, second)
        reference = error_of(after.base_scores[task]) if after.base and after.base == before.base else None
        if shared_errors[0] is not None and shared_errors[1] is not None and reference is not None:
            kind = "through the base"
            shared = [
                min(max((own**2 + reference**2 - joint**2) / 2, 0.0), own * reference)
                for own, joint in ((errors[0], shared_errors[0]), (errors[1], shared_errors[1]))
            ]
            covariance = shared[0] * shared[1] / reference**2 if reference > 0 else 0.0
        variance = max(errors[0] ** 2 + errors[1] ** 2 - 2 * covariance, 0.0)
        parts.append(difference(second.value - first.value, math.sqrt(variance)))
        kinds.add(kind)
    found = average_difference(parts) if parts else difference(0.0, 0.0)
    return found, kinds.pop() if len(kinds) == 1 else "mixed"


def _paired_error(row: Comparison, score: Score) -> float | None:
    """Return the standard error of a score's paired difference to the base; None where it is not paired."""
    pair = row.pair(score)
    if pair is None:
        return None
    stated = score.paired.stderr if score.paired else None
    return pair.error if stated is None else stated


HEAD = (
    "method",
    "size %",
    "base %",
    "before %",
    "after %",
    "Δ base before",
    "Δ base after",
    "gain, points",
    "tokens",
    "CPU s",
)


def training_lines(frame: pd.DataFrame) -> dict[str, list[Line]]:
    """Return the cells under ``HEAD`` of the rows of each board."""
    return lines_by_board(frame, _line)


def _line(row: Row) -> Line:
    return (
        run_name(row) + (f" ({row['pairs']} seeds)" if row["pairs"] > 1 else ""),
        percent(row["keep_bytes"]),
        percent(row["base_average"]),
        percent(row["before"], row["before_error"]),
        percent(row["after"], row["after_error"]),
        _points(row, "before_difference"),
        _points(row, "after_difference"),
        _points(row, "gain") + (" (unpaired)" if row["pairing"] == "unpaired" else ""),
        f"{row['tokens']:,.0f}",
        significant(row["seconds"]),
    )


def _points(row: Row, name: str) -> str:
    ends = interval(row[f"{name}_low"], row[f"{name}_high"], 100.0, 1, True)
    return f"{percent(row[name], signed=True)} {ends}".rstrip()
