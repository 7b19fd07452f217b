"""Records of a store by what a user calls them: an id, or the beginning of one, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.records.record import Record, read_record
from methods.framework.errors import RecordError, UnknownNameError

SHOWN = 5
"""Records that a message names."""


def records_folder(store: Path) -> Path:
    """Return the folder of the records of a store, which may be named itself.

    Raises:
        RecordError: there is none.
    """
    for folder in (store / "records", store):
        if next(folder.glob("*.json"), None) is not None:
            return folder
    raise RecordError(f"no record lies in {store}; name a store that `moebench run` or a grid has written (--store)")


def stored_record(name: str, store: Path) -> tuple[Record, Path]:
    """Return the record that ``name`` means, and the store that it lies in.

    Args:
        name: a file, an id, or the beginning of one id alone.
        store: where ids are looked up.

    Raises:
        RecordError: there is no store, several ids begin so, or a file is no record.
        UnknownNameError: no id begins so.
    """
    path = Path(name)
    if path.suffix == ".json" and path.is_file():
        return read_record(path), path.resolve().parent.parent
    folder = records_folder(store)
    known = [one.stem for one in sorted(folder.glob("*.json"))]
    found = [name] if name in known else [one for one in known if one.startswith(name)]
    if not found:
        raise UnknownNameError("record", name, known, f"`moebench status {store}` lists all {len(known)}.")
    if len(found) > 1:
        raise RecordError(f"{len(found)} records begin with {name}: {_some(found)}; give more letters")
    return read_record(folder / f"{found[0]}.json"), folder.parent if folder.name == "records" else folder


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
