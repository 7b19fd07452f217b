"""The arrows between the project's files, read from their import statements, and what may be said against them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

PACKAGES = ("methods", "bench", "sweeps", "analysis")

Arrows = Mapping[str, frozenset[str]]
"""Modules that each module imports, anywhere in its text: at the top, in a function, for the type checker."""


def modules(root: Path, packages: Iterable[str] = PACKAGES) -> dict[str, Path]:
    """Return the files of ``packages`` below ``root`` by their dotted names."""
    found = {}
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            name = ".".join(path.relative_to(root).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def arrows(files: Mapping[str, Path]) -> Arrows:
    """Return which of ``files`` each of them imports."""
    return {name: frozenset(_imported(path, files.keys())) - {name} for name, path in files.items()}


def _imported(path: Path, known: Iterable[str]) -> Iterator[str]:
    names = set(known)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: imports are absolute"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from (name for name in (whole if whole in names else node.module,) if name in names)


def stated_order(design: str) -> list[str]:
    """Return the rooms in the order of the table under the heading "Rooms" of ``design``, the ground first."""
    table = design.split("\n## Rooms\n", 1)[1].split("\n## ", 1)[0]
    return [match.replace("/", ".") for match in re.findall(r"^\| `([\w/]+?)/?(?:\.py)?` \|", table, re.MULTILINE)]


def room_of(module: str, order: Sequence[str]) -> str | None:
    """Return the innermost of the rooms that ``module`` lies in, or None."""
    return max((room for room in order if module == room or module.startswith(f"{room}.")), key=len, default=None)


def upward(found: Arrows, order: Sequence[str]) -> list[tuple[str, str]]:
    """Return the arrows that lead from a room to one that stands later in ``order``."""
    level: dict[str | None, int] = {room: index for index, room in enumerate(order)}
    level[None] = len(order)  # a package itself, which offers names from all of its rooms
    pairs = ((start, end) for start, ends in found.items() for end in sorted(ends))
    return [(a, b) for a, b in pairs if level[room_of(a, order)] < level[room_of(b, order)]]


def circles(found: Arrows) -> list[list[str]]:
    """Return the groups of modules, each sorted, in which every one leads to every other."""
    reach: dict[str, set[str]] = {}
    for start in found:
        seen: set[str] = set()
        todo = list(found[start])
        while todo:
            if (here := todo.pop()) not in seen:
                seen.add(here)
                todo += found.get(here, ())
        reach[start] = seen
    groups = {tuple(sorted(b for b in reach[a] if a in reach[b])) for a in found if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def twice(paths: Iterable[Path]) -> list[str]:
    """Return the file stems that occur more than once, ``__init__`` aside."""
    stems = [path.stem for path in paths if path.stem != "__init__"]
    return sorted({stem for stem in stems if stems.count(stem) > 1})
