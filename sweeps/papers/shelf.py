"""The papers that are known, read and checked: folders of this one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import Strict, load_settings, read_settings, validated
from methods.framework.errors import ConfigError, UnknownNameError
from sweeps.papers.paper_file import Exhibit, PaperFile, Word

_FOLDER = Path(__file__).parent
_PAPER = "paper.yaml"


@dataclass(frozen=True)
class Paper:
    """A paper with its tables and figures, in the paper's order.

    Args:
        name: of its folder.
        file: what ``paper.yaml`` says.
        exhibits: by name, such as ``table-3``.
    """

    name: str
    file: PaperFile
    exhibits: Mapping[str, Exhibit]

    def exhibit(self, name: str) -> Exhibit:
        """Return a table or figure.

        Raises:
            UnknownNameError: the paper has none of that name; the closest one is given.
        """
        if name not in self.exhibits:
            raise UnknownNameError(f"table or figure of {self.name}", name, self.exhibits)
        return self.exhibits[name]


class PocketFile(Strict):
    """What takes the place of a paper's settings on pocket models."""

    calibration: CalibrationConfig
    tasks: tuple[str, ...]
    titles: dict[str, str]
    limit: int
    dtype: str
    recovery: dict[str, Word]


class TaskSize(Strict):
    """How much a task reads."""

    items: int
    requests: int
    tokens: int

    @property
    def read(self) -> int:
        """Tokens of all requests."""
        return self.items * self.requests * self.tokens

    @property
    def chance(self) -> float | None:
        """Score of guessing among the answers of an item, each of which is a request; None where there is no choice."""
        return 1 / self.requests if self.requests > 1 else None


def paper_names() -> list[str]:
    """Return the names of the papers."""
    return sorted(path.parent.name for path in _FOLDER.glob(f"*/{_PAPER}"))


@cache
def read_paper(name: str) -> Paper:
    """Read a paper and check that its parts name each other.

    Raises:
        UnknownNameError: no such paper.
        ConfigError: a file is not sound.
    """
    if name not in paper_names():
        raise UnknownNameError("paper", name, paper_names())
    return read_folder(_FOLDER / name)


def read_folder(folder: Path) -> Paper:
    """Read the paper that lies in ``folder``.

    Raises:
        ConfigError: a file is not sound, or names a model or column that ``paper.yaml`` does not have.
    """
    file = load_settings(folder / _PAPER, PaperFile)
    exhibits = {}
    for path in sorted((path for path in folder.glob("*.yaml") if path.name != _PAPER), key=_place):
        exhibit = load_settings(path, Exhibit)
        for kind, used, known in (
            ("model", exhibit.models, file.models),
            ("column", exhibit.columns, file.columns),
            ("model", tuple(name for row in exhibit.rows for name in row.models), file.models),
        ):
            if unknown := [name for name in used if name not in known]:
                raise ConfigError(f"{path}: {UnknownNameError(kind, unknown[0], known)}")
        exhibits[path.stem] = exhibit
    for name, column in file.columns.items():
        if unknown := [part for part in column.of if part not in file.columns]:
            raise ConfigError(
                f"{folder / _PAPER}: columns.{name}: {UnknownNameError('column', unknown[0], file.columns)}"
            )
    return Paper(folder.name, file, exhibits)


@cache
def pocket_settings() -> PocketFile:
    """Return what takes the place of a paper's settings on pocket models."""
    return load_settings(_FOLDER / "pocket.yaml", PocketFile)


@cache
def task_sizes() -> Mapping[str, TaskSize]:
    """Return how much each task reads, where that is known."""
    path = _FOLDER / "tasks.yaml"
    return {name: validated(size, TaskSize, f"{path}: {name}") for name, size in read_settings(path).items()}


def _place(path: Path) -> tuple[str, int, str]:
    """Sort tables before figures, and each by number, then by letter."""
    kind, _, number = path.stem.partition("-")
    found = re.match(r"\d+", number)
    return ("0" if kind == "table" else "1" if kind == "figure" else "2", int(found[0]) if found else 0, path.stem)
