"""Pages of papers that lie beside a report, so that its rows lead to the tables that they belong to."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from methods.framework.errors import ConfigError

_NUMBER = re.compile(r"arXiv (\d{4}\.\d{4,5})")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class PaperPage:
    """One page.

    Args:
        title: its heading.
        address: where it lies, from the report.
        numbers: of the papers that it is about, on arXiv.
    """

    title: str
    address: str
    numbers: frozenset[str]


def paper_pages(folder: Path | None, out: Path) -> tuple[PaperPage, ...]:
    """Return the pages in ``folder``, as `moebench paper NAME all` writes them.

    Args:
        folder: None where there are none.
        out: folder of the report.

    Raises:
        ConfigError: there is no such folder, or no page in it.
    """
    if folder is None:
        return ()
    found = []
    for path in sorted(folder.glob("*.md")):
        text = path.read_text(encoding="utf-8", errors="replace")
        title = _TITLE.search(text)
        if title is None:
            continue
        about = text[title.end() :].strip().partition("\n\n")[0]
        address = quote(Path(os.path.relpath(path.resolve(), out.resolve())).as_posix())
        found.append(PaperPage(title[1].strip(), address, frozenset(_NUMBER.findall(about))))
    if not found:
        raise ConfigError(f"{folder} holds no page of a paper; `moebench paper NAME all --out {folder}` writes one")
    return tuple(found)


def pages_about(source: str, pages: Sequence[PaperPage]) -> list[tuple[str, str]]:
    """Return title and address of the pages about the paper that ``source`` names."""
    numbers = set(_NUMBER.findall(source))
    return [(page.title, page.address) for page in pages if numbers & page.numbers]
