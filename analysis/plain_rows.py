"""Rows of a frame as plain dictionaries."""

from __future__ import annotations

from typing import Any

import pandas as pd


def rows_of(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain dictionaries: None for what is missing, Python's own numbers."""
    columns = {name: _values(frame[name]) for name in frame.columns}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _values(column: pd.Series[Any]) -> list[Any]:
    values, missing = column.astype(object).tolist(), column.isna().tolist()
    return [None if absent else value for value, absent in zip(values, missing, strict=True)]
