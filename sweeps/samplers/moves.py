"""Moves between assignments that stay on the budget.

Letters: A axes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sweeps.space.levels import Levels, LevelSpace

MANY = 12
"""Units from which a search is one over the depth: few trials tell little of each; docs/search.md has races of 6 and of 30."""
ATTEMPTS = 64
"""Moves that are drawn until one is new."""


def uniform(space: LevelSpace) -> Levels:
    """Return the assignment on the budget that has the same level everywhere, as nearly as there is one."""
    return space.projected(np.zeros(len(space.axes)))


def drawn(space: LevelSpace, rng: np.random.Generator) -> Levels:
    """Return a random assignment on the budget."""
    return space.projected(rng.random(len(space.axes)) * space.highest)


def shapes(space: LevelSpace) -> list[Levels]:
    """Return ten ways in which levels may be spread over the axes, each on the budget.

    Rising, falling, high or low in the middle, falling or rising steeply, the first or last quarter high, every other one high,
    flat with low ends.

    *Source*: arXiv 2603.06003 (EvoESAP), the start patterns of its first population.
    """
    count = len(space.axes)
    depth_A = np.linspace(0.0, 1.0, count) if count > 1 else np.zeros(1)
    middle_A = 1.0 - np.abs(2.0 * depth_A - 1.0)
    first_A, last_A = (depth_A < 0.25) * 0.5 + 0.5, (depth_A > 0.75) * 0.5 + 0.5
    every_A = np.where(np.arange(count) % 2 == 0, 1.0, 0.5)
    steep_A = np.exp(-3.0 * depth_A)
    flat_A = np.minimum(1.0, 0.5 + middle_A)
    found = [depth_A, 1 - depth_A, middle_A, 1 - middle_A, steep_A, steep_A[::-1], first_A, last_A, every_A, flat_A]
    return [space.projected(share_A * space.highest) for share_A in found]


class Load:
    """An assignment and what it weighs; a change of one axis costs one look at its unit.

    Plain numbers, since a draw makes thousands of such changes.
    """

    def __init__(self, space: LevelSpace, levels_A: Levels) -> None:
        """Weigh a copy of ``levels_A``."""
        self.levels: list[int] = levels_A.tolist()
        self.top: list[int] = space.highest.tolist()
        self._units, self._strides = [axis.unit for axis in space.axes], space.strides
        self._places = [sum(self.levels[axis] * self._strides[axis] for axis in own) for own in space.members]
        self._limited = [(space.flat[quantity], limit) for quantity, limit in space.limits.items()]
        self._totals = [
            space.rest[quantity] + sum(own[place] for own, place in zip(sizes, self._places, strict=True))
            for quantity, (sizes, _) in zip(space.limits, self._limited, strict=True)
        ]
        # No axis can be raised from a total above this; half a unit more than that, since sizes are whole and limits are not.
        self._full = [limit - space.least_step[quantity] + 0.5 for quantity, limit in space.limits.items()]

    @property
    def levels_A(self) -> Levels:
        """The assignment."""
        return np.array(self.levels, dtype=np.int64)

    def moved(self, axis: int, level: int, free: bool = False) -> bool:
        """Set the level of an axis if the limits allow it; return whether they do.

        Args:
            axis: its number.
            level: its new level.
            free: whether only the existence of such a plan counts, not the limits.
        """
        unit = self._units[axis]
        before = self._places[unit]
        after = before + (level - self.levels[axis]) * self._strides[axis]
        totals = []
        for (sizes, limit), total in zip(self._limited, self._totals, strict=True):
            size = sizes[unit][after]
            total = total + size - sizes[unit][before]
            if size == math.inf or (not free and total > limit):
                return False
            totals.append(total)
        self.levels[axis], self._places[unit], self._totals = level, after, totals
        return True

    def raised(self, axis: int, steps: int) -> bool:
        """Raise an axis by as many steps as fit, at most ``steps``; return whether it went up at all."""
        level = self.levels[axis]
        return any(self.moved(axis, one) for one in range(min(level + steps, self.top[axis]), level, -1))

    def filled(self, order: Sequence[int]) -> None:
        """Raise axes by one level each, in turn, as long as one fits."""
        open_axes = [axis for axis in order if self.levels[axis] < self.top[axis]]
        while open_axes and all(total <= full for total, full in zip(self._totals, self._full, strict=True)):
            open_axes = [axis for axis in open_axes if self.raised(axis, 1)]


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
    load = Load(space, levels_A)
    _switch(load, rng, steps)
    return load.levels_A


def _switch(load: Load, rng: np.random.Generator, steps: int) -> None:
    """Lower axes by ``steps`` until one that is drawn goes up, and fill what is left of the budget."""
    before, axes = list(load.levels), len(load.levels)
    higher = [axis for axis, (level, top) in enumerate(zip(before, load.top, strict=True)) if level < top]
    if not higher:
        return
    up, lowered = higher[int(rng.integers(len(higher)))], []
    for down in rng.permutation(axes).tolist():
        if down == up or before[down] == 0:
            continue
        lowered.append(down)
        level = max(0, before[down] - steps)
        while level > 0 and not load.moved(down, level, free=True):
            level -= 1
        while not load.raised(up, steps) and level > 0:
            level -= 1
            load.moved(down, level, free=True)
        if load.levels[up] > before[up]:
            break
    load.filled([axis for axis in rng.permutation(axes).tolist() if axis not in lowered])
    load.filled(lowered[::-1])


def several(space: LevelSpace, levels_A: Levels, rng: np.random.Generator, count: int, most: int = 1) -> Levels:
    """Return the result of ``count`` switches, one after another.

    Args:
        space: the assignments and their limits.
        levels_A: an assignment that fits.
        rng: decides.
        count: switches.
        most: levels that an axis goes down by, at most.
    """
    if not space.limits:
        for _ in range(count):
            levels_A = switched(space, levels_A, rng, most)
        return levels_A
    load = Load(space, levels_A)
    for _ in range(count):
        _switch(load, rng, int(rng.integers(1, most + 1)))
    return load.levels_A


def untried(move: Callable[[int], Levels], known: Callable[[Levels], bool]) -> Levels | None:
    """Return the first result of ``move`` (given the number of the attempt) that is not known; None after many attempts."""
    for attempt in range(ATTEMPTS):
        levels_A = move(attempt)
        if not known(levels_A):
            return levels_A
    return None
