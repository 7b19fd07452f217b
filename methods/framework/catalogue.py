"""All statistics by name: those of the folder ``methods/stats``, then those that other distributions bring."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import entry_points

from methods.framework.accumulator import Accumulator, ModelAccumulator
from methods.framework.errors import ConfigError
from methods.framework.stat_spec import LETTERS, StatSpec

FOLDER = "methods.stats"
ENTRY_POINT_GROUP = "moebench.statistics"

Kind = type[Accumulator] | type[ModelAccumulator]


class Catalogue(Mapping[str, StatSpec]):
    """Definitions by name, and the class that measures each; the folder is read when something is first asked for."""

    def __getitem__(self, name: str) -> StatSpec:
        """Return the definition of statistic ``name``."""
        return next(spec for spec in self._kinds[name].specs if spec.name == name)

    def __iter__(self) -> Iterator[str]:
        """Go through the names."""
        return iter(self._kinds)

    def __len__(self) -> int:
        """Return the number of statistics."""
        return len(self._kinds)

    def kind(self, name: str) -> Kind:
        """Return the class that measures statistic ``name``."""
        return self._kinds[name]

    @cached_property
    def _kinds(self) -> dict[str, Kind]:
        found: dict[str, Kind] = {}
        for kind in _all_kinds():
            for spec in kind.specs:
                if not LETTERS.issuperset(spec.dims):
                    raise ConfigError(
                        f"statistic {spec.name!r} has the axes {spec.dims}; known: {', '.join(sorted(LETTERS))}"
                    )
                if (other := found.setdefault(spec.name, kind)) is not kind:
                    raise ConfigError(
                        f"statistic {spec.name!r} is defined by {other.__module__} and by {kind.__module__}; rename one"
                    )
        return found


def _all_kinds() -> Iterator[Kind]:
    """Go through the classes of every file of the folder, in order of names, and of every entry point."""
    for file in sorted(pkgutil.iter_modules(importlib.import_module(FOLDER).__path__), key=lambda file: file.name):
        module = importlib.import_module(f"{FOLDER}.{file.name}")
        yield from (value for value in vars(module).values() if _is_kind(value) and value.__module__ == module.__name__)
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name):
        loaded = point.load()
        if not _is_kind(loaded):
            raise ConfigError(f"entry point {point.name!r} gives {loaded!r}, which is not an Accumulator with `specs`")
        yield loaded


def _is_kind(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Accumulator | ModelAccumulator) and hasattr(value, "specs")


CATALOGUE = Catalogue()
