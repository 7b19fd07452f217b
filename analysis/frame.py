"""Records to frames: one row a run, and one row a run, task and metric."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import pandas as pd

from analysis.averaging import average_seeds
from analysis.columns import COLUMNS, variants
from analysis.comparison import Comparison, compare
from analysis.multiplicity import corrected
from analysis.plain_rows import rows_of
from analysis.protocol import error_of, key
from analysis.ranking import FLOOR, rank
from analysis.typed import WHO, typed
from bench.records.record import Record, Score


def frame(
    records: Iterable[Record], floor: float = FLOOR, *, compared: Sequence[Comparison] | None = None
) -> pd.DataFrame:
    """Return one row for each run, with the columns of ``analysis.columns.COLUMNS``, ranked.

    Runs that differ only in their seeds form one row (see ``analysis.averaging``).

    Args:
        records: in any order, which changes nothing.
        floor: retention below which a row is marked, 0 to 1.
        compared: the records beside their bases where that is known (``compared_by_id``).

    Shares and scores are fractions of 1, sizes are bytes.
    """
    rows = average_seeds(compared_by_id(records) if compared is None else compared)
    data = [
        {column.name: column.get(row) if column.get else None for column in COLUMNS} | {"variant": variant}
        for row, variant in zip(rows, variants(rows), strict=True)
    ]
    return corrected(rank(typed(data, {column.name: column.kind for column in COLUMNS}), floor))


def compared_by_id(records: Iterable[Record]) -> list[Comparison]:
    """Return one comparison for each record, sorted by id."""
    return compare(sorted(records, key=lambda record: record.id))


SCORE_COLUMNS: dict[str, str] = {
    **WHO,
    "task": "string",
    "metric": "string",
    "filter": "string",
    "headline": "boolean",
    "higher_is_better": "boolean",
    "value": "float64",
    "stderr": "float64",
    "n": "Int64",
    "seeds": "Int64",
    "seed_half": "float64",
    "base": "float64",
    "retention": "float64",
    "difference": "float64",
    "difference_low": "float64",
    "difference_high": "float64",
    "p": "float64",
    "p_holm": "float64",
    "test": "string",
    "interval": "string",
    "version": "string",
    "digest": "string",
}
"""Columns of the scores frame with their types. ``headline``: the metric that speaks for the task; ``stderr``: over
items, the mean of the seeds' own where there are several; ``seeds``: runs in the mean; ``seed_half``: half of the 95 %
interval of the mean over seeds; ``retention``: score over the base's, or the base's over the score where lower is
better, base measured in the same protocol; ``p_holm``: corrected over the headline tasks of the run; ``test``, ``interval``:
how p and the interval of the difference were made."""


def scores_frame(
    records: Iterable[Record],
    *,
    compared: Sequence[Comparison] | None = None,
    order: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return one row for each run, task, metric and filter, in the order of ``frame`` and then by task.

    Args:
        records: in any order.
        compared: the records beside their bases where that is known (``compared_by_id``).
        order: their frame where it is known.
    """
    known = compared_by_id(records) if compared is None else compared
    rows = {row.record.id: row for row in average_seeds(known)}
    runs = (frame((), compared=known) if order is None else order)[["status", *WHO]]
    data = [
        values for run in rows_of(runs) if run["status"] == "complete" for values in _score_rows(rows[run["id"]], run)
    ]
    return typed(data, SCORE_COLUMNS)


def _score_rows(row: Comparison, run: dict[str, object]) -> Iterable[dict[str, object]]:
    base = {key(score): score for score in row.base.scores} if row.base else {}
    for score in sorted(row.record.scores, key=lambda s: (s.task, s.metric, s.filter)):
        reference = base.get(key(score))
        pair, seeds = row.pair(score), row.over_seeds(score)
        speaks = row.scores.get(score.task) == score
        yield {
            **{name: run[name] for name in WHO},
            **score.model_dump(include={"task", "metric", "filter", "higher_is_better", "value", "n"}),
            "stderr": error_of(score),
            "headline": speaks,
            "seeds": row.runs,
            "seed_half": seeds.half if seeds else None,
            "base": None if reference is None else reference.value,
            "retention": None
            if reference is None
            else _retention(score.value, reference.value, score.higher_is_better),
            "difference": pair.value if pair else None,
            "difference_low": pair.low if pair else None,
            "difference_high": pair.high if pair else None,
            "p": pair.p if pair else None,
            "p_holm": row.holm.get(score.task) if speaks else None,
            "test": _test(row, score),
            "interval": _interval(row, score),
            "version": score.version,
            "digest": score.digest,
        }


def _test(row: Comparison, score: Score) -> str | None:
    if row.runs > 1:
        return "normal over items and seeds" if row.pair(score) else None
    return score.paired.test if score.paired else None


def _interval(row: Comparison, score: Score) -> str | None:
    if row.runs > 1:
        return "over items and seeds" if row.pair(score) else None
    return INTERVALS[score.paired.interval] if score.paired else None


INTERVALS = {
    "score": "score, Wald and exact",
    "joined": "expanded bootstrap and t without skewness",
    "bootstrap": "expanded bootstrap of an earlier version",
    "percentile": "bootstrap of an earlier version",
}
"""How the interval of a difference was made, by its name in records."""


def _retention(value: float, base: float, higher_is_better: bool) -> float | None:
    above, below = (value, base) if higher_is_better else (base, value)
    return above / below if below else None
