"""Files made of records: tables, pages and figures, written as records are."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from bench.store.atomic import write_atomically

Cell = TypeVar("Cell")


def csv_cell(value: Cell) -> Cell | str:
    """Return ``value`` as a CSV file may hold it: text that a spreadsheet would run as a formula gets an apostrophe in front.

    Names of models, knobs and reasons come from outside. Numbers, also those in text, stay as they are.
    """
    if not isinstance(value, str):
        return value
    # Writers do not quote a lone carriage return, and readers begin a new row there.
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    if not text.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\n")):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def write_derived(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` in one atomic step, and return ``path``.

    Raises:
        RecordError: the disk refuses.
    """
    return write_atomically(path, content, remedy="free space or choose another folder")
