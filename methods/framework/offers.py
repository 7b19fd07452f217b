"""What the project and other distributions offer under a name: a place in our own files, or an entry point."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping
from importlib.metadata import entry_points
from typing import Any


def offered_names(built_in: Iterable[str], group: str) -> list[str]:
    """Return the names that are ours in their order, then those of other distributions, sorted; a name of ours is ours.

    Args:
        built_in: our names.
        group: group of entry points.
    """
    ours = list(built_in)
    return [*ours, *sorted(point.name for point in entry_points(group=group) if point.name not in ours)]


def offered(name: str, built_in: Mapping[str, str], group: str) -> tuple[Any, str] | None:
    """Return what stands under ``name`` and where it comes from, for messages; None where there is no such name.

    Args:
        name: that is looked for.
        built_in: our names and where each stands, ``module:attribute``.
        group: group of entry points.
    """
    if place := built_in.get(name):
        module, _, attribute = place.partition(":")
        return getattr(importlib.import_module(module), attribute, None), module
    point = next(iter(entry_points(group=group, name=name)), None)
    return None if point is None else (point.load(), f"entry point {name!r}")
