"""Reading folders of records for a report: what cannot be read is named, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.records.record import Record, read_record
from methods.framework.errors import RecordError


@dataclass(frozen=True)
class Loaded:
    """Records of one or several folders.

    Args:
        records: each run once, sorted by id.
        problems: one sentence for each file that was left out.
    """

    records: tuple[Record, ...]
    problems: tuple[str, ...]


def load(folders: Path | Iterable[Path]) -> Loaded:
    """Read all records (``*.json``) directly in ``folders``.

    A run that lies in several folders counts once. Files of another schema are left out and named in ``problems``.

    Raises:
        RecordError: a folder does not exist.
    """
    found: dict[str, Record] = {}
    problems: list[str] = []
    for folder in [folders] if isinstance(folders, Path) else list(folders):
        if not folder.is_dir():
            raise RecordError(f"no folder {folder}; give a folder that holds the records (*.json) of runs")
        for path in sorted(folder.glob("*.json")):
            try:
                record = read_record(path)
            except RecordError as error:
                problems.append(str(error).replace(str(path), path.name))
                continue
            if record.id not in found:
                found[record.id] = record
            elif found[record.id] != record:
                problems.append(f"{path.name}: another record of the same id {record.id} was read before; left out")
    return Loaded(tuple(found[key] for key in sorted(found)), tuple(problems))
