"""Parts of a sweep that cost one file each: found in a folder of this package and in other distributions."""

from __future__ import annotations

import importlib
import pkgutil
from importlib.metadata import entry_points
from typing import Any, TypeVar, get_args

from bench.settings.strict import Strict
from methods.framework.errors import ConfigError

Part = TypeVar("Part", bound=Strict)


def offered(folder: str, group: str, kind: type[Part], tag: str) -> dict[str, type[Part]]:
    """Return all parts of one kind by name, those of ``folder`` first.

    A file ``NAME.py`` of the folder holds a subclass of ``kind`` whose field ``tag`` is ``Literal[NAME]``; an entry
    point ``NAME`` of another distribution leads to one.

    Args:
        folder: package that is searched, such as ``sweeps.objectives``.
        group: group of entry points.
        kind: class that every part extends.
        tag: field that holds a part's name.

    Raises:
        ConfigError: a file or an entry point that does not hold what its name says.
    """
    found: dict[str, type[Part]] = {}
    for file in pkgutil.iter_modules(importlib.import_module(folder).__path__):
        module = importlib.import_module(f"{folder}.{file.name}")
        held = (value for value in vars(module).values() if _is(value, kind, tag, file.name))
        found[file.name] = _checked(next(held, None), kind, tag, file.name, f"file {module.__file__}")
    for point in entry_points(group=group):
        if point.name not in found:
            found[point.name] = _checked(point.load(), kind, tag, point.name, f"entry point {point.value} of {group}")
    return found


def _checked(value: Any, kind: type[Part], tag: str, name: str, where: str) -> type[Part]:
    if not _is(value, kind, tag, name):
        raise ConfigError(f"{where} should hold a subclass of {kind.__module__}.{kind.__name__} with {tag} {name!r}")
    loaded: type[Part] = value
    return loaded


def _is(value: Any, kind: type[Strict], tag: str, name: str) -> bool:
    if not (isinstance(value, type) and issubclass(value, kind)):
        return False
    return get_args(value.model_fields[tag].annotation) == (name,)
