"""Reading folders of records for a report: what cannot be read is named, and nothing else is lost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.sharing import Shared
from bench.records.record import Record, read_record
from methods.framework.errors import RecordError


@dataclass(frozen=True)
class Loaded:
    """Records of one or several folders.

    Args:
        records: each run once, sorted by id.
        problems: one sentence for each file that was left out.
        places: folder that each record was read from, by id.
    """

    records: tuple[Record, ...]
    problems: tuple[str, ...]
    places: Mapping[str, Path]

    @property
    def origins(self) -> dict[str, str]:
        """What the store of each run is called, by id; empty where all lie in one store."""
        folders = sorted(set(self.places.values()))
        if len(folders) < 2:
            return {}
        names = dict(zip(folders, told_apart(folders), strict=True))
        return {run: names[folder] for run, folder in self.places.items()}


def told_apart(folders: Sequence[Path]) -> list[str]:
    """Return a name for each folder: as few of its last parts as tell it from the others, ``records`` left out."""
    parts = [(folder.parent if folder.name == "records" else folder).resolve().parts for folder in folders]
    count = 1
    while len({part[-count:] for part in parts}) < len({*parts}) and count < max(map(len, parts)):
        count += 1
    return ["/".join(part[-count:]) for part in parts]


def records_folder(store: Path) -> Path:
    """Return the folder of records of a store; a folder that has none in it is one itself."""
    inside = store / "records"
    return inside if inside.is_dir() else store


def load(folders: Path | Iterable[Path]) -> Loaded:
    """Read all records (``*.json``) directly in ``folders``.

    A run that lies in several folders counts once. Files of another schema are left out and named in ``problems``.

    Raises:
        RecordError: a folder does not exist.
    """
    found: dict[str, Record] = {}
    places: dict[str, Path] = {}
    problems: list[str] = []
    shared = Shared()
    for folder in [folders] if isinstance(folders, Path) else list(folders):
        if not folder.is_dir():
            raise RecordError(f"no folder {folder}; give a folder that holds the records (*.json) of runs")
        for path in sorted(folder.glob("*.json")):
            try:
                record = shared(read_record(path))
            except RecordError as error:
                problems.append(str(error).replace(str(path), path.name))
                continue
            if record.id not in found:
                found[record.id], places[record.id] = record, folder
            elif found[record.id] != record:
                problems.append(f"{path.name}: another record of the same id {record.id} was read before; left out")
    return Loaded(tuple(found[key] for key in sorted(found)), tuple(problems), places)
