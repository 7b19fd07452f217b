"""All families that are known here: one file each, those of the package and those of other distributions."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from types import ModuleType

from bench.families.family_file import FamilyFile, read_family_file
from methods.framework.errors import ConfigError

ENTRY_POINT_GROUP = "moebench.families"
"""Group of the entry points through which other distributions add families."""


def family_files() -> tuple[Traversable, ...]:
    """Return the family files that ship with the package, by name, then those of other distributions.

    Another distribution offers its own through an entry point of the group ``moebench.families``, which names a package that
    holds them, or the path of one file or of a folder.

    Raises:
        ConfigError: an entry point gives no family file.
    """
    points = sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)
    offered = (file for point in points for file in _offered(point))
    return (*_files_in(files("bench") / "families"), *offered)


def _files_in(place: Traversable) -> tuple[Traversable, ...]:
    """Return ``place`` itself, or the family files in it where it is a folder."""
    if not place.is_dir():
        return (place,)
    return tuple(sorted((p for p in place.iterdir() if p.name.endswith(".toml")), key=lambda p: p.name))


def _offered(point: EntryPoint) -> tuple[Traversable, ...]:
    loaded = point.load()
    found = _files_in(files(loaded) if isinstance(loaded, ModuleType) else Path(loaded))
    if not found:
        raise ConfigError(
            f"entry point {point.name!r} of {ENTRY_POINT_GROUP} gives {loaded!r}, which holds no family file"
        )
    return found


@cache
def read_families() -> Mapping[str, FamilyFile]:
    """Return all families by name, sorted.

    Raises:
        ConfigError: a file is not sound, or two of them have a name or a model type in common.
    """
    found = [(path, read_family_file(path)) for path in family_files()]
    taken: dict[str, Traversable] = {}
    for path, family in found:
        for key in (f"the name {family.name!r}", *(f"the model type {kind!r}" for kind in family.all_model_types)):
            if key in taken:
                raise ConfigError(f"family files {taken[key]} and {path} both have {key}; remove one or rename it")
            taken[key] = path
    return {family.name: family for _, family in sorted(found, key=lambda one: one[1].name)}


@cache
def expert_keys() -> frozenset[str]:
    """Return the spellings of the number of experts in the configs of all families."""
    return frozenset(key for family in read_families().values() if not family.dense for key in family.keys.experts)
