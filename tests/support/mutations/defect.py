"""Defects as data: what is replaced by what, where, and which tests should notice.

A defect names the folder (or file) in which its text stands exactly once, so that it survives moves within a room.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

DATA = Path(__file__).parent
"""Folder of the files of defects, one for each area."""
SUFFIXES = (".py", ".toml")
"""Files in which defects are planted."""


class Unfit(Exception):
    """A defect that cannot be planted in this tree."""


@dataclass(frozen=True)
class Defect:
    """One change of the code that changes results.

    Args:
        id: its name, unique.
        area: file of defects that it stands in.
        kind: sort of mistake.
        where: folder or file, relative to the root, in which ``old`` stands exactly once.
        old: text that is replaced.
        new: text in its place.
        tests: selections of tests, each a folder or file with options of pytest, in the order in which they are tried.
    """

    id: str
    area: str
    kind: str
    where: str
    old: str
    new: str
    tests: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Digest of all that the verdict on it depends on, but for the tree."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:16]


def read_defects(folder: Path = DATA) -> list[Defect]:
    """Return the defects in the TOML files of ``folder``, in the order of files and within them.

    Raises:
        ValueError: two have one name, or one lacks a field or changes nothing.
    """
    found: dict[str, Defect] = {}
    for path in sorted(folder.glob("*.toml")):
        for fields in tomllib.loads(path.read_text())["defect"]:
            try:
                defect = Defect(area=path.stem, **{**fields, "tests": tuple(fields["tests"])})
            except (TypeError, KeyError) as error:
                raise ValueError(f"{path.name}: {fields.get('id')}: {error}") from error
            if defect.id in found or defect.old == defect.new or not defect.tests:
                raise ValueError(f"{path.name}: {defect.id} stands twice, changes nothing, or names no test")
            found[defect.id] = defect
    return list(found.values())


def site(defect: Defect, tree: Path) -> Path:
    """Return the one file of ``tree`` that holds what ``defect`` replaces, once.

    Raises:
        Unfit: there is none, there are several places, or what comes out is no Python.
    """
    place = tree / defect.where
    files = [place] if place.is_file() else sorted(path for path in place.rglob("*") if path.suffix in SUFFIXES)
    counts = {path: path.read_text(encoding="utf-8").count(defect.old) for path in files}
    holders = [path for path, count in counts.items() if count]
    if sum(counts.values()) != 1:
        raise Unfit(f"stands {sum(counts.values())} times in {defect.where}, in {[path.name for path in holders]}")
    changed = holders[0].read_text(encoding="utf-8").replace(defect.old, defect.new)
    try:
        compile(changed, holders[0].name, "exec") if holders[0].suffix == ".py" else tomllib.loads(changed)
    except (SyntaxError, tomllib.TOMLDecodeError) as error:
        raise Unfit(f"{holders[0].name} cannot be read any more: {error}") from error
    return holders[0]


@contextmanager
def planted(defect: Defect, tree: Path) -> Iterator[Path]:
    """Plant ``defect`` in ``tree`` for the length of a ``with`` block.

    Raises:
        Unfit: as ``site``.
    """
    path = site(defect, tree)
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace(defect.old, defect.new), encoding="utf-8")
    try:
        yield path
    finally:
        path.write_text(text, encoding="utf-8")
