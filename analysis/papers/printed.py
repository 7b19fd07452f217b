"""Numbers that a paper prints, looked up row by row, scores in percent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from analysis.published import published
from methods.framework.errors import ConfigError

_NOT_SCORES = frozenset(
    {"speedup", "tflops", "mem_gb", "wikitext2", "ptb", "c4", "ratio", "removed", "hours", "params_b", "experts_left"}
)
"""Columns of numbers that the unit of a file says nothing about."""


def printed(table: str, select: Mapping[str, object]) -> dict[str, float]:
    """Return the numbers of the one row of a published table in which each column of ``select`` has the value that is asked for.

    Raises:
        UnknownNameError: no such table.
        ConfigError: no row, or several, are like that.
    """
    frame, row = _selected(table, select)
    scale = 100.0 if row.get("unit") == "fraction" else 1.0
    numbers = frame.select_dtypes("number").columns
    found = {name: float(row[name]) for name in numbers if not pd.isna(row[name])}
    return {name: value if name in _NOT_SCORES else scale * value for name, value in found.items()}


def printed_words(table: str, select: Mapping[str, object], column: str) -> str:
    """Return what the one row of a published table with these values says in a column of words.

    Args:
        table: its name.
        select: value of each column that selects the row.
        column: that is read.

    Raises:
        UnknownNameError: no such table.
        ConfigError: no row, or several, are like that, or there is no such column.
    """
    _, row = _selected(table, {**select, column: None})
    return str(row[column])


def _selected(table: str, select: Mapping[str, object]) -> tuple[pd.DataFrame, pd.Series[Any]]:
    """Return a published table and its one row with these values; None stands for any value."""
    frame = published(table)
    absent = [name for name in select if name not in frame.columns]
    if absent:
        raise ConfigError(
            f"analysis/published/{table}.csv has no column {absent[0]!r}; it has {', '.join(frame.columns)}"
        )
    rows = frame[
        [all(value is None or _same(row[name], value) for name, value in select.items()) for _, row in frame.iterrows()]
    ]
    if len(rows) != 1:
        wanted = ", ".join(f"{name} {value}" for name, value in select.items())
        raise ConfigError(
            f"analysis/published/{table}.csv has {len(rows)} rows with {wanted}; state columns that select one"
        )
    return frame, rows.iloc[0]


def _same(found: object, wanted: object) -> bool:
    try:
        return float(str(found)) == float(str(wanted))
    except ValueError:
        return str(found) == str(wanted)
