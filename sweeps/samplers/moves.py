"""Moves between assignments that stay on the budget.

Letters: A axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sweeps.space.levels import Levels, LevelSpace

ATTEMPTS = 64
"""Moves that are drawn until one is new."""


def uniform(space: LevelSpace) -> Levels:
    """Return the assignment on the budget that has the same level everywhere, as nearly as there is one."""
    return space.projected(np.zeros(len(space.axes)))


def drawn(space: LevelSpace, rng: np.random.Generator) -> Levels:
    """Return a random assignment on the budget."""
    return space.projected(rng.random(len(space.axes)) * space.highest)


class Load:
    """An assignment and what it weighs; a change of one axis costs one look at its unit."""

    def __init__(self, space: LevelSpace, levels_A: Levels) -> None:
        """Weigh a copy of ``levels_A``."""
        self.space, self.levels_A = space, levels_A.copy()
        self.totals = {quantity: space.size(quantity, levels_A) for quantity in space.limits}

    def moved(self, axis: int, level: int, free: bool = False) -> bool:
        """Set the level of an axis if the limits allow it; return whether they do.

        Args:
            axis: its number.
            level: its new level.
            free: whether only the existence of such a plan counts, not the limits.
        """
        space, unit = self.space, self.space.axes[axis].unit
        own = space.members[unit]
        before: tuple[int, ...] = (int(self.levels_A[axis]),)
        after: tuple[int, ...] = (level,)
        if len(own) > 1:
            before = tuple(int(self.levels_A[one]) for one in own)
            after = tuple(level if one == axis else old for one, old in zip(own, before, strict=True))
        totals = {}
        for quantity, limit in space.limits.items():
            part = space.sizes[quantity][unit]
            size = float(part[after])
            totals[quantity] = self.totals[quantity] + size - float(part[before])
            if not math.isfinite(size) or (not free and totals[quantity] > limit):
                return False
        self.levels_A[axis], self.totals = level, totals
        return True

    def raised(self, axis: int, steps: int) -> bool:
        """Raise an axis by as many steps as fit, at most ``steps``; return whether it went up at all."""
        level = int(self.levels_A[axis])
        return any(self.moved(axis, one) for one in range(min(level + steps, self._top(axis)), level, -1))

    def filled(self, order: Sequence[int]) -> Levels:
        """Raise axes by one level each, in turn, as long as one fits; return the assignment."""
        open_axes = list(order)
        while open_axes:
            open_axes = [axis for axis in open_axes if self.raised(axis, 1)]
        return self.levels_A

    def _top(self, axis: int) -> int:
        return int(self.space.highest[axis])


def switched(space: LevelSpace, levels_A: Levels, rng: np.random.Generator, most: int = 1) -> Levels:
    """Return ``levels_A`` with one axis lower and others higher, as large as the limits allow.

    An axis goes down by 1 to ``most`` levels, and further (at its end, others too) until one that is drawn as well can go up, by
    as many levels where that fits. What is left of the budget goes to others in random order. Without limits one axis moves
    either way.

    Args:
        space: the assignments and their limits.
        levels_A: an assignment that fits.
        rng: decides.
        most: levels that the first axis goes down by, at most.

    *Source*: arXiv 2410.14649 (EvoPress), level-switch mutation. *Differs*: units may differ in size, so the sum of sizes is kept
    below the limit instead of the sum of levels.
    """
    steps = int(rng.integers(1, most + 1))
    if not space.limits:
        axis = int(rng.choice(np.flatnonzero(space.highest > 0)))
        moved_A = levels_A.astype(np.float64)
        moved_A[axis] += rng.choice([-1, 1]) * steps
        return space.projected(moved_A)
    higher = np.flatnonzero(levels_A < space.highest)
    if not len(higher):
        return levels_A.copy()
    load, up = Load(space, levels_A), int(rng.choice(higher))
    lowered = []
    for down in (int(axis) for axis in rng.permutation(len(levels_A)) if axis != up and levels_A[axis] > 0):
        lowered.append(down)
        level = max(0, int(levels_A[down]) - steps)
        while level > 0 and not load.moved(down, level, free=True):
            level -= 1
        while not load.raised(up, steps) and level > 0:
            level -= 1
            load.moved(down, level, free=True)
        if load.levels_A[up] > levels_A[up]:
            break
    others = [int(axis) for axis in rng.permutation(len(levels_A)) if axis not in lowered]
    load.filled(others)
    return load.filled(lowered[::-1])


def several(space: LevelSpace, levels_A: Levels, rng: np.random.Generator, count: int, most: int = 1) -> Levels:
    """Return the result of ``count`` switches, one after another.

    Args:
        space: the assignments and their limits.
        levels_A: an assignment that fits.
        rng: decides.
        count: switches.
        most: levels that an axis goes down by, at most.
    """
    for _ in range(count):
        levels_A = switched(space, levels_A, rng, most)
    return levels_A


def untried(move: Callable[[int], Levels], known: Callable[[Levels], bool]) -> Levels | None:
    """Return the first result of ``move`` (given the number of the attempt) that is not known; None after many attempts."""
    for attempt in range(ATTEMPTS):
        levels_A = move(attempt)
        if not known(levels_A):
            return levels_A
    return None
