"""A value for every option of a unit from a few of them: each axis alone, in between on straight lines, axes added up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from sweeps.space.levels import Reals


def anchors(shape: Sequence[int], centre: Sequence[int], count: int) -> list[tuple[int, ...]]:
    """Return the options of a unit that are to be measured, the centre first, each other one apart from it in one axis.

    Args:
        shape: number of levels of each axis.
        centre: the option that all others are compared with.
        count: options along an axis, the centre and both ends among them where they differ.
    """
    found = [tuple(centre)]
    for axis, extent in enumerate(shape):
        ends = np.linspace(0, extent - 1, min(count, extent))
        levels = {int(level) for level in np.round(ends)}
        found += [(*centre[:axis], level, *centre[axis + 1 :]) for level in sorted(levels) if level != centre[axis]]
    return found


def spread(known: Mapping[tuple[int, ...], float], shape: Sequence[int], centre: Sequence[int]) -> Reals:
    """Return a value for every option of a unit.

    Args:
        known: values of ``anchors``.
        shape: number of levels of each axis.
        centre: the option that they are around.
    """
    middle = known[tuple(centre)]
    total: Reals = np.full(tuple(shape), middle)
    for axis, extent in enumerate(shape):
        line = {
            one[axis]: value
            for one, value in known.items()
            if all(level == centre[place] for place, level in enumerate(one) if place != axis)
        }
        levels = sorted(line)
        along = np.interp(np.arange(extent), levels, [line[level] for level in levels]) - middle
        total = total + along.reshape([-1 if place == axis else 1 for place in range(len(shape))])
    return total
