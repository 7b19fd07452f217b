"""Frames whose columns have the types that are stated for them, and their rows board by board."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.comparison import Comparison
from analysis.knobs import knobs_text
from analysis.plain_rows import rows_of
from analysis.table import Row

Line = tuple[str, ...]
WHO: Mapping[str, str] = dict.fromkeys(("id", "board", "model", "method", "title", "knobs"), "string")
"""Columns, with their types, by which every frame names a run."""


def who(row: Comparison) -> dict[str, Any]:
    """Return the values of the columns ``WHO``."""
    record = row.record
    return {
        "id": record.id,
        "board": row.board,
        "model": record.model.name,
        "method": record.method,
        "title": record.title,
        "knobs": knobs_text(record),
    }


def typed(rows: Sequence[Mapping[str, Any]], kinds: Mapping[str, str]) -> pd.DataFrame:
    """Return ``rows`` as a frame with exactly the columns of ``kinds``, in its order; each row must have them all.

    Args:
        rows: values by column, None where there is none.
        kinds: pandas type of each column.
    """
    return pd.DataFrame(
        {name: pd.array([row[name] for row in rows], dtype=kind) for name, kind in kinds.items()}, columns=list(kinds)
    )


def lines_by_board(frame: pd.DataFrame, line: Callable[[Row], Line]) -> dict[str, list[Line]]:
    """Return the cells that ``line`` makes of each row, by board, in the order of ``frame``."""
    found: dict[str, list[Line]] = {}
    for row in rows_of(frame):
        found.setdefault(row["board"], []).append(line(row))
    return found
