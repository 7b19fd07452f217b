"""Points of nearly equal size side by side, so that one does not hide another, nor an arrow the next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import count

Point = tuple[float, float]


def side_by_side(
    groups: Sequence[Sequence[str]], points: Mapping[str, Point], *, lane: float, gap: float
) -> dict[str, float]:
    """Return the shift in x of each point, a whole number of lanes.

    Points of a group (a run before and after trainings) share a lane. A group takes the lane nearest to its true size in which
    no earlier group stands at its heights; earlier groups choose first.

    Args:
        groups: keys of ``points``, each in one group; the first tells the size of all.
        points: where they stand, in units of the axes.
        lane: width of a lane: least distance in x of two groups that have heights in common.
        gap: least distance in y of two groups in one lane.
    """
    taken: list[tuple[float, float, float]] = []
    shifts: dict[str, float] = {}
    for group in groups:
        x = points[group[0]][0]
        heights = [points[key][1] for key in group]
        low, high = min(heights), max(heights)
        beside = [one for one, bottom, top in taken if bottom - gap < high and low < top + gap]
        lanes = ((step + 1) // 2 * (1 if step % 2 else -1) * lane for step in count())  # 0, 1, -1, 2, -2, ...
        shift = next(shift for shift in lanes if all(abs(x + shift - one) >= 0.99 * lane for one in beside))
        taken.append((x + shift, low, high))
        shifts |= dict.fromkeys(group, shift)
    return shifts
