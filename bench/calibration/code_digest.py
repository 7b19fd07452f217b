"""Digests of the source text that values depend on, so that no edit leaves an old value in a cache.

What a module depends on is read from import statements, transitively, in its own package and in ours; what is imported for the
type checker alone changes nothing. Rooms that read models and texts count whole, with the data files in them.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import inspect
import sys
import uuid
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

from bench.store.store import digest_of
from methods.framework.catalogue import CATALOGUE

ROOT = Path(__file__).parents[2]
"""Folder of the packages."""
OWN = ("bench", "methods", "sweeps")
"""Packages whose files are looked for below the root; the rest of the project only calls them."""
ROOMS = ("bench.checkpoint", "bench.families", "bench.experts", "bench.text", "bench.models", "bench.calibration")
"""Rooms that decide what is read, in whatever form it is stored, and how it is measured."""
EVALUATING = ("bench.checkpoint", "bench.families", "bench.experts", "bench.text", "bench.models", "bench.evaluation")
"""Rooms that decide what a model answers, and what its answers are worth."""
APPLYING = ("bench.checkpoint", "bench.families", "bench.experts", "bench.applying")
"""Rooms that decide what tensors a plan becomes."""
PROBING = (*ROOMS, "bench.probing")
"""Rooms that decide what a candidate of a method is worth."""
TRAINING = (*APPLYING, "bench.text", "bench.models", "bench.recovery")
"""Rooms that decide what a training makes of a checkpoint."""
TIMING = ("bench.serving", "bench.timing")
"""Rooms that decide how a model is served, and how it is timed."""
SHOWING = ("bench.cards",)
"""Rooms that only tell what was done; whoever calls them, no value depends on them."""
_DATA = ("*.toml", "*.json")
_REGISTRY = "methods.registry"
"""Imports methods by names that stand in strings, so whatever imports it depends on all of them."""


@cache
def code_digest(rooms: tuple[str, ...] = ROOMS, root: Path = ROOT) -> str:
    """Return the digest of all files of ``rooms`` and of what they import."""
    return _digest([name for room in rooms for name in _modules_of(room, root)], root, _data_of(rooms, root))


@cache
def statistic_digest(name: str, root: Path = ROOT) -> str:
    """Return the digest of the file that measures statistic ``name`` and of what that imports, kernels above all."""
    return decision_digest(CATALOGUE.kind(name), root)


@cache
def module_digest(names: tuple[str, ...], root: Path = ROOT, packages: tuple[str, ...] = OWN) -> str:
    """Return the digest of modules and of what they import.

    Args:
        names: dotted names of the modules.
        root: folder of the packages.
        packages: those of ours of which files count.
    """
    return _digest(names, root, packages=packages)


def decision_digest(kind: type, root: Path = ROOT, packages: tuple[str, ...] = OWN) -> str:
    """Return the digest of the files that define a class, its ancestors among them, and of what they import.

    Args:
        kind: the class.
        root: folder of the packages.
        packages: those of ours of which files count; those of other distributions always do.
    """
    digest = _digest([ancestor.__module__ for ancestor in kind.__mro__], root, packages=packages)
    return digest_of([digest, [_typed_in(ancestor) for ancestor in kind.__mro__]])


def _typed_in(kind: type) -> str:
    """Return the text of a class that was typed into a session, empty for one of a file."""
    if kind.__module__ in sys.stdlib_module_names or getattr(sys.modules.get(kind.__module__), "__file__", None):
        return ""
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):
        return uuid.uuid4().hex  # nothing says what it was, so nothing is found again


def _digest(starts: Iterable[str], root: Path, data: Iterable[Path] = (), packages: Iterable[str] = OWN) -> str:
    """Return the digest of the modules ``starts``, of all that they depend on, and of ``data``."""
    todo = list(starts)
    tops = {*packages, *(name.split(".")[0] for name in todo)} - (set(OWN) - set(packages))
    tops = tops - sys.stdlib_module_names - {"pydantic"} | {"__main__"}
    found: dict[str, Path] = {}
    while todo:
        name = todo.pop()
        if name in found or name.split(".")[0] not in tops or _shows(name):
            continue
        path = _file_of(name, root)
        if path is None:
            todo += _home_of(name, root)
            continue
        found[name] = path
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        todo += [name.rpartition(".")[0], *_imported(path.read_bytes(), package)]
        if name == _REGISTRY:
            todo += _modules_of("methods", root)
    files = {**found, **{str(path.relative_to(root)): path for path in data}}
    return digest_of({name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()})


def _shows(name: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in SHOWING)


def _modules_of(room: str, root: Path) -> list[str]:
    """Return the dotted names of all modules of a room, those of rooms within it too."""
    files = root.joinpath(*room.split(".")).rglob("*.py")
    return [".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__") for path in files]


def _data_of(rooms: Iterable[str], root: Path) -> Iterator[Path]:
    """Go through the files of rooms that are no modules: families are data."""
    for room in rooms:
        for pattern in _DATA:
            yield from sorted(root.joinpath(*room.split(".")).rglob(pattern))


def _file_of(name: str, root: Path) -> Path | None:
    """Return the file of a module, or None for what is no module: a name in one, or nothing."""
    if name.split(".")[0] in OWN:
        stem = root.joinpath(*name.split("."))
        below = next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)
        if below is not None or root != ROOT or stem.parent.with_suffix(".py").is_file():
            return below  # a name within a module is no module, and asking Python for one would import the module
    if name in sys.modules:
        file = getattr(sys.modules[name], "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(name) if name else None
        except (ImportError, ValueError):
            return None
        file = spec.origin if spec is not None and spec.has_location else None
    return Path(file) if file is not None and file.endswith(".py") else None


def _home_of(name: str, root: Path) -> list[str]:
    """Return the module of a name that a package offers lazily: then its file imports it for the type checker."""
    package, _, attribute = name.rpartition(".")
    file = _file_of(package, root) if package else None
    if file is None or file.name != "__init__.py":
        return []
    offered = (node for node in ast.walk(ast.parse(file.read_bytes())) if isinstance(node, ast.ImportFrom))
    return [node.module for node in offered if node.module and attribute in {alias.name for alias in node.names}]


@cache
def _imported(text: bytes, package: str) -> tuple[str, ...]:
    """Return everything that a module of ``package`` imports when it runs: modules, and names that may be modules."""
    return tuple(_imports(text, package))


def _imports(text: bytes, package: str) -> Iterator[str]:
    todo: list[ast.AST] = [ast.parse(text)]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield start
            yield from (f"{start}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            todo += node.orelse
        else:
            todo += ast.iter_child_nodes(node)
