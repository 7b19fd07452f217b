"""Assignments of options to units as whole numbers, with their exact sizes and the projection onto a budget.

Letters: A axes, U units, Q limited quantities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from methods.framework.errors import RefusedError

Levels: TypeAlias = npt.NDArray[np.int64]
Reals: TypeAlias = npt.NDArray[np.float64]

_HALVINGS = 40
"""Bisection steps of a shift; levels are rounded, so that more change nothing."""


@dataclass(frozen=True, slots=True)
class Axis:
    """What one parameter of a sampler chooses.

    Args:
        name: of the parameter, such as ``keep.layer.3``.
        unit: number of the unit that it belongs to.
        values: the options, the smallest result first.
    """

    name: str
    unit: int
    values: tuple[object, ...]


@dataclass(frozen=True)
class LevelSpace:
    """All assignments: a level, from 0, for each axis.

    Args:
        axes: what is chosen.
        units: names of the units, which are independent of each other.
        sizes: of each quantity, for each unit, the size of every combination of its axes' levels, in the order of its axes;
            infinite where there is no such plan.
        rest: of each quantity, the size of what does not vary.
        limits: largest total of each limited quantity.
    """

    axes: tuple[Axis, ...]
    units: tuple[str, ...]
    sizes: Mapping[str, tuple[Reals, ...]]
    rest: Mapping[str, float]
    limits: Mapping[str, float]

    @cached_property
    def members(self) -> tuple[tuple[int, ...], ...]:
        """The numbers of each unit's axes."""
        return tuple(
            tuple(index for index, axis in enumerate(self.axes) if axis.unit == unit) for unit in range(len(self.units))
        )

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """By how many places of its unit's ``flat`` sizes a level of each axis counts, [A]."""
        found = [0] * len(self.axes)
        for own in self.members:
            place = 1
            for axis in reversed(own):
                found[axis], place = place, place * len(self.axes[axis].values)
        return tuple(found)

    @cached_property
    def flat(self) -> Mapping[str, list[list[float]]]:
        """The sizes of each unit's combinations as plain numbers, one after another, by limited quantity."""
        return {quantity: [part.ravel().tolist() for part in self.sizes[quantity]] for quantity in self.limits}

    @cached_property
    def least_step(self) -> Mapping[str, float]:
        """The least by which a level more of any axis adds to each limited quantity; negative where one takes from it."""
        found = {}
        for quantity in self.limits:
            steps = [
                np.diff(np.where(np.isfinite(part), part, np.nan), axis=axis).ravel()
                for part in self.sizes[quantity]
                for axis in range(part.ndim)
            ]
            known = np.concatenate(steps) if steps else np.zeros(0)
            found[quantity] = float(known[np.isfinite(known)].min(initial=np.inf))
        return found

    @cached_property
    def highest(self) -> Levels:
        """The largest level of each axis, [A]."""
        return np.array([len(axis.values) - 1 for axis in self.axes], dtype=np.int64)

    def size(self, quantity: str, levels_A: Levels) -> float:
        """Return the size of the whole; infinite where there is no such plan."""
        parts = zip(self.sizes[quantity], self.members, strict=True)
        return float(self.rest[quantity] + sum(part[tuple(levels_A[list(own)])] for part, own in parts))

    def excess(self, levels_A: Levels) -> float:
        """Return by which share of its limit the worst quantity is above it; 0 or less where all limits are met."""
        worst = -1.0
        for quantity, limit in self.limits.items():
            worst = max(worst, (self.size(quantity, levels_A) - limit) / limit)
        return worst if self.limits or np.isfinite(self.size(next(iter(self.sizes)), levels_A)) else np.inf

    def fits(self, levels_A: Levels) -> bool:
        """Return whether there is such a plan, within the limits."""
        return self.excess(levels_A) <= 0.0

    def projected(self, wished_A: Sequence[float] | Reals) -> Levels:
        """Return the assignment of the wished shape that just meets the limits.

        All wishes are shifted by the same amount and rounded, as far up as the limits allow; then single axes go up by one
        level as long as one fits, those first that are nearest to it. Without limits wishes are rounded where they are.

        Args:
            wished_A: a level for each axis, not necessarily whole or within range.

        Raises:
            RefusedError: the smallest plan is above a limit.
        """
        wished_A = np.asarray(wished_A, dtype=np.float64)
        if not self.limits:
            return self._valid(self._rounded(wished_A))
        lowest = np.zeros_like(self.highest)
        reach = float(np.abs(wished_A).max(initial=0.0) + self.highest.max(initial=0) + 1)
        low, high = -reach, reach
        if self.fits(self._rounded(wished_A + high)):
            return self._rounded(wished_A + high)
        if not self.fits(lowest):
            return self.filled(self._reduced(self._rounded(wished_A), wished_A), wished_A)
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.fits(self._rounded(wished_A + middle)) else (low, middle)
        levels_A = self._rounded(wished_A + low)
        return self.filled(levels_A if self.fits(levels_A) else lowest, wished_A + low)

    def filled(self, levels_A: Levels, wished_A: Reals) -> Levels:
        """Return ``levels_A`` with axes raised one level at a time as long as the limits allow.

        Args:
            levels_A: an assignment that fits.
            wished_A: axes furthest below their wish go first, ties in their order.
        """
        levels_A = levels_A.copy()
        while True:
            for axis in np.argsort(levels_A - wished_A, kind="stable"):
                if levels_A[axis] < self.highest[axis]:
                    levels_A[axis] += 1
                    if self.fits(levels_A):
                        break
                    levels_A[axis] -= 1
            else:
                return levels_A

    def combinations(self, unit: int) -> list[tuple[int, ...]]:
        """Return every combination of levels of a unit's axes that there is a plan for."""
        size = self.sizes[next(iter(self.sizes))][unit]
        return [levels for levels in product(*(range(extent) for extent in size.shape)) if np.isfinite(size[levels])]

    def values(self, levels_A: Levels) -> dict[str, object]:
        """Return the option of each axis by the name of its parameter."""
        return {axis.name: axis.values[level] for axis, level in zip(self.axes, levels_A, strict=True)}

    def _rounded(self, wished_A: Reals) -> Levels:
        return np.clip(np.floor(wished_A + 0.5), 0, self.highest).astype(np.int64)

    def _reduced(self, levels_A: Levels, wished_A: Reals) -> Levels:
        """Return ``levels_A`` with units changed until the limits are met, where a lower level may be larger.

        Times are of that kind: small factors can be slower than a whole matrix. A unit's change is the one that moves least
        from the wishes for what it takes from the quantity that is furthest above its limit.

        Args:
            levels_A: an assignment.
            wished_A: a level for each axis.

        Raises:
            RefusedError: no assignment that is reached so meets the limits.
        """
        levels_A = levels_A.copy()
        while not self.fits(levels_A):
            quantity = max(self.limits, key=lambda name: self.size(name, levels_A) / self.limits[name])
            best: tuple[float, tuple[int, ...], tuple[int, ...]] | None = None
            for own, part in zip(self.members, self.sizes[quantity], strict=True):
                here = tuple(int(level) for level in levels_A[list(own)])
                wished = wished_A[list(own)]
                for levels in map(tuple, np.argwhere(part < part[here])):
                    moved = float(np.abs(levels - wished).sum() - np.abs(here - wished).sum())
                    price = moved / float(part[here] - part[levels]) if np.isfinite(part[here]) else -np.inf
                    if best is None or price < best[0]:
                        best = (price, own, levels)
            if best is None:
                raise RefusedError(self._too_small(levels_A))
            levels_A[list(best[1])] = best[2]
        return levels_A

    def _valid(self, levels_A: Levels) -> Levels:
        """Return ``levels_A`` with the nearest combination that exists in every unit."""
        levels_A = levels_A.copy()
        for unit, own in enumerate(self.members):
            here = levels_A[list(own)]
            if not all(np.isfinite(parts[unit][tuple(here)]) for parts in self.sizes.values()):
                known = np.array(self.combinations(unit))
                levels_A[list(own)] = known[np.abs(known - here).sum(axis=1).argmin()]
        return levels_A

    def _too_small(self, lowest_A: Levels) -> str:
        quantity, limit = max(self.limits.items(), key=lambda item: self.size(item[0], lowest_A) / item[1])
        return (
            f"the smallest plan of this space has {self.size(quantity, lowest_A) / limit:.3g} times the {quantity} that the "
            "budget allows; allow a larger budget, or smaller options"
        )
