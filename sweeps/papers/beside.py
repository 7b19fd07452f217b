"""Tables and figures of another model that a page shows below those of the pocket models.

They lie as sections in a folder of the model's name beside the files of the page, which takes them up when it is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.papers.tables import BESIDE
from bench.records.derived import write_derived
from methods.framework.errors import RecordError
from methods.framework.outside import read_text

ABOUT = "about.md"
"""File that says what the model is."""


@dataclass(frozen=True)
class Beside:
    """What lies there of one model.

    Args:
        name: of the model.
        about: what it is.
        sections: by table or figure, with addresses of files that lie beside them.
    """

    name: str
    about: str
    sections: Mapping[str, str]


def write_beside(section: str, files: Mapping[str, bytes], exhibit: str, folder: Path, about: str) -> list[Path]:
    """Write a table or figure of a model for the page to take up.

    Args:
        section: in Markdown.
        files: contents by name.
        exhibit: name of the table or figure.
        folder: of the model.
        about: what the model is.

    Raises:
        RecordError: the disk refuses.
    """
    contents = {ABOUT: f"{about.strip()}\n".encode(), f"{exhibit}.md": section.encode(), **files}
    return [write_derived(folder / file, content) for file, content in contents.items()]


def read_beside(folder: Path) -> Iterator[Beside]:
    """Yield the models whose sections lie in the folder of a paper, by name.

    Raises:
        RecordError: a file cannot be read.
    """
    for path in sorted(folder.glob(f"*/{ABOUT}")):
        sections = {
            one.stem: read_text(one, RecordError).replace(f"]({BESIDE}", f"]({BESIDE}{path.parent.name}/")
            for one in sorted(path.parent.glob("*.md"))
            if one != path
        }
        yield Beside(path.parent.name, read_text(path, RecordError).strip(), sections)


def spelled(
    paper: str,
    exhibit: str,
    model: str,
    place: str | None,
    texts: str | None,
    given: Mapping[str, Mapping[str, Any]],
) -> str:
    """Return the command that measures a table or figure of a model, with names in the place of folders.

    Args:
        paper: its name.
        exhibit: name of the table or figure.
        model: folder, hub id or pocket model.
        place: of ``--place``.
        texts: of ``--texts``.
        given: settings that a user gave, by their part.
    """
    words = ["moebench paper", paper, exhibit, "--model", Path(model).name if Path(model).is_dir() else model]
    words += ["--place", place] if place else []
    words += ["--texts", f"'{texts}'"] if texts else []
    for settings in given.values():
        for name, value in settings.items():
            text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
            words += [f"--{name.replace('_', '-')}", Path(text).name if Path(text).exists() else text]
    return " ".join(words)
