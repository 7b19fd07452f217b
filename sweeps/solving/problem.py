"""The multiple-choice knapsack: one option for each unit, so that damages add up to little and sizes to no more than a limit.

Shape letters: U units, O options of a unit (they may differ in number), P points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]
DamageRows: TypeAlias = Sequence[Sequence[float] | Floats]
"""For each unit the damages of its options."""
SizeRows: TypeAlias = Sequence[Sequence[int] | NDArray[np.integer[Any]]]
"""For each unit the sizes of its options."""

LARGEST = 2**53
"""Largest sum of sizes: whole numbers up to here are exact as floats too, in which bounds are computed."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One option for each unit.

    Args:
        levels: index of the option of each unit, in the order of the units.
        damage: sum of the options' damages, correctly rounded.
    """

    levels: tuple[int, ...]
    damage: float


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best assignments of a problem.

    Args:
        assignments: ascending in damage; fewer than were asked for where no more exist.
        gap: 0 where it is proved that no other assignment is better than any of these, up to rounding (1e-12 of the largest
            sum of damages). Else: no other assignment is better than the last of these by more than this.
    """

    assignments: tuple[Assignment, ...]
    gap: float = 0.0


def as_damages(damages: DamageRows) -> list[Floats]:
    """Return the damages of each unit as an array (O,).

    Raises:
        ValueError: a unit without options, or a damage that is no finite number.
    """
    found = [np.asarray(unit, dtype=np.float64) for unit in damages]
    if not found or any(unit.ndim != 1 or not len(unit) or not np.isfinite(unit).all() for unit in found):
        raise ValueError("every unit needs one finite damage for each of its options, one at least")
    return found


def as_sizes(sizes: SizeRows, damages: Sequence[Floats]) -> list[Ints]:
    """Return the sizes of each unit as an array (O,), beside ``damages`` of the same shapes.

    Raises:
        ValueError: other numbers of units or options, sizes that are not whole, or a sum above ``LARGEST``.
    """
    found: list[Any] = [np.asarray(unit) for unit in sizes]
    if [unit.shape for unit in found] != [unit.shape for unit in damages]:
        raise ValueError("sizes and damages have different numbers of units or options")
    if any(unit.dtype.kind not in "iu" for unit in found):
        raise ValueError("sizes are whole numbers")
    if sum(max(map(abs, map(int, unit))) for unit in found) > LARGEST:
        raise ValueError(f"the sizes add up to more than {LARGEST}: state them in a larger unit")
    return [unit.astype(np.int64) for unit in found]


def summed(damages: Sequence[Floats], levels: Sequence[int]) -> float:
    """Return the damage of an assignment, rounded once, so that the order of the units does not matter."""
    return math.fsum(unit[level] for unit, level in zip(damages, levels, strict=True))


def rounding(damages: Sequence[Floats]) -> float:
    """Return what a sum of damages may be off by when it is added up in any order (and more)."""
    return 1e-12 * math.fsum(float(np.abs(unit).max()) for unit in damages)
