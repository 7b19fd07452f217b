"""What fits a figure: of more models or runs than that, figures show some and say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.plain_rows import rows_of

BOARDS = 9
"""Models that figures are drawn for: those with the most runs."""

RUNS = 60
"""Runs of a model that a figure has room for as rows or labelled points; of more, those that rank first and the Pareto front."""

Rows = list[dict[str, Any]]


def shown_boards(boards: Mapping[str, Rows]) -> dict[str, Rows]:
    """Return the boards that figures are drawn for, in their order."""
    largest = sorted(boards, key=lambda board: -len(boards[board]))[:BOARDS]
    return {board: rows for board, rows in boards.items() if board in largest}


def shown_runs(rows: Sequence[dict[str, Any]]) -> Rows:
    """Return the runs of one board that fit a figure, in their order: bases, the Pareto front, and those that rank first."""
    runs = sum(not row["is_base"] for row in rows)
    if runs <= RUNS:
        return list(rows)
    return [
        row
        for row in rows
        if row["is_base"] or row["pareto"] is True or (row["rank"] is not None and row["rank"] <= RUNS)
    ]


def too_many(frame: pd.DataFrame) -> list[str]:
    """Return what figures leave out, a sentence each."""
    if not len(frame):
        return []
    complete = rows_of(frame[(frame["status"] == "complete").astype(bool)][["board", "model", "is_base"]])
    boards: dict[str, Rows] = {}
    for row in complete:
        if not row["is_base"]:
            boards.setdefault(row["board"], []).append(row)
    found = []
    if len(boards) > BOARDS:
        found.append(
            f"Figures show the {BOARDS} models with the most runs, of {len(boards)}; "
            "report the others' records alone to draw them."
        )
    crowded = sorted({rows[0]["model"] for rows in boards.values() if len(rows) > RUNS})
    if crowded:
        names = ", ".join(crowded[:5]) + (f" and {len(crowded) - 5} more" if len(crowded) > 5 else "")
        found.append(
            f"Figures by run show the Pareto front and the first {RUNS} by rank of {names}; the table has them all."
        )
    return found
