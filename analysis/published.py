"""Numbers that papers and repositories print, as they print them, for showing beside ours and never for mixing in.

Each file of ``analysis/published`` is one table. Every row says its ``source`` and the ``unit`` of its scores;
``ratio_of`` says what its ``ratio`` (percent removed) counts (a field of ``bench.records.record.RatioInfo``) where
the source tells.
Metrics, shots and harness differ between sources, so tables of different sources do not compare.
"""

from __future__ import annotations

import functools
from pathlib import Path

import pandas as pd

from methods.framework.errors import UnknownNameError

_FOLDER = Path(__file__).parent / "published"
_FIRST = ("source", "model", "method", "ratio", "ratio_of", "unit", "setting", "item")


def names() -> list[str]:
    """Return the names of the published tables."""
    return sorted(path.stem for path in _FOLDER.glob("*.csv"))


def published(name: str) -> pd.DataFrame:
    """Return one published table, numbers as printed.

    Raises:
        UnknownNameError: no such table.
    """
    if name not in names():
        raise UnknownNameError("published table", name, names())
    return _table(name).copy()


@functools.cache
def _table(name: str) -> pd.DataFrame:
    return pd.read_csv(_FOLDER / f"{name}.csv")


def beside(model: str) -> dict[str, pd.DataFrame]:
    """Return the rows of every published table about the same family and size as ``model``, by table name.

    A published model matches when its name, in letters and digits only, is contained in the last part of ``model``.
    """
    ours = _bare(model.rsplit("/", 1)[-1])
    found = {}
    for name in names():
        table = _table(name)
        rows = table[[bool(theirs) and theirs in ours for theirs in map(_bare, table["model"])]]
        if len(rows):
            found[name] = rows.dropna(axis="columns", how="all").reset_index(drop=True)
    return found


def cells(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Return header and text cells of published rows, without the columns that say the same in every row."""
    shown = [name for name in table.columns if name not in ("source", "model", "unit", "ratio_of")]
    shown.sort(key=lambda name: _FIRST.index(name) if name in _FIRST else len(_FIRST))
    rows = [["–" if pd.isna(value) else _text(value) for value in row] for row in table[shown].itertuples(index=False)]
    return shown, rows


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bare(name: object) -> str:
    return "".join(letter for letter in str(name).lower() if letter.isalnum())
