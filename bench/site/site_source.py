"""The Markdown of the repository as the source of a site: links that leave ``docs`` are led to copies inside it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

PAGES: Mapping[str, str] = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "bench/pocket/README.md": "pocket-models.md",
    "bench/perf/README.md": "speed-benchmark.md",
    "docs/search.md": "searches.md",
}
"""Pages outside ``docs``, and where they lie in the site; and one whose name Sphinx takes for its own page of the search."""

COPIED = frozenset({".md", ".svg", ".png", ".csv", ".json"})

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~)")


def stage(root: Path, out: Path) -> dict[str, str]:
    """Copy the pages of the repository to ``out``, and return where each of its files lies there.

    Args:
        root: the repository.
        out: folder of the source of the site, new or empty.
    """
    docs = root / "docs"
    files = [path for path in sorted(docs.rglob("*")) if path.suffix in COPIED and not _is_part(path.relative_to(docs))]
    places = {path.relative_to(root).as_posix(): path.relative_to(docs).as_posix() for path in files}
    places |= PAGES
    for source, target in places.items():
        path = out / target
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".md":
            path.write_text(relinked((root / source).read_text(encoding="utf-8"), source, places), encoding="utf-8")
        else:
            shutil.copyfile(root / source, path)
    return places


def _is_part(path: Path) -> bool:
    """Return whether a file is a section of a paper's page, which that page takes up, and no page itself."""
    return path.suffix == ".md" and path.parts[0] == "papers" and len(path.parts) > 2


def relinked(text: str, source: str, places: Mapping[str, str]) -> str:
    """Return a page whose links lead to where the files lie in the site; what is not there is named, not linked.

    Args:
        text: the page.
        source: where it lies in the repository.
        places: where each file of the repository lies in the site.
    """
    here = PurePosixPath(places[source]).parent

    def moved(match: re.Match[str]) -> str:
        image, words, link = match.groups()
        if "://" in link or link.startswith(("#", "mailto:")):
            return match[0]
        name, mark, anchor = link.partition("#")
        meant = os.path.normpath(PurePosixPath(source).parent / name)
        if meant not in places:
            return f"{words} (`{meant}`)"
        return f"{image}[{words}]({os.path.relpath(places[meant], here)}{mark}{anchor})"

    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= _FENCE.match(line) is not None
        lines.append(line if fenced else _LINK.sub(moved, line))
    return "\n".join(lines)
