"""Lower bounds: the knapsack with fractions of options, solved for every capacity at once.

With fractions a unit can have any point of the lower convex hull of its options (size, damage). The best use of a capacity takes
the edges of all hulls in the order of their slopes, so the least damage is a convex, piecewise linear function of the capacity.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sweeps.solving.problem import Floats, Ints


@dataclass(frozen=True, slots=True)
class Relaxation:
    """Least damage of some units, with fractions, as a function of the capacity.

    Args:
        capacities: corners, ascending; below the first no choice fits, above the last nothing improves.
        damages: least damage at each corner.
    """

    capacities: Floats
    damages: Floats

    def least(self, capacities: Ints) -> Floats:
        """Return the least damage within each of ``capacities``; infinite where no choice fits."""
        return np.interp(capacities, self.capacities, self.damages, left=np.inf)

    def price(self, capacity: int) -> float:
        """Return by how much the least damage falls for a unit of size more than ``capacity``; 0 where it falls no more."""
        edge = int(np.searchsorted(self.capacities, capacity, side="right"))
        if edge in (0, len(self.capacities)):
            return 0.0
        fall = self.damages[edge - 1] - self.damages[edge]
        return float(fall / (self.capacities[edge] - self.capacities[edge - 1]))


def hull(sizes: Ints, damages: Floats) -> list[tuple[int, float]]:
    """Return the corners (size, damage) of the lower convex hull, sizes ascending and damages descending."""
    corners: list[tuple[int, float]] = []
    for index in np.lexsort((damages, sizes)):
        size, damage = int(sizes[index]), float(damages[index])
        if corners and damage >= corners[-1][1]:
            continue
        while len(corners) > 1 and not _turns(corners[-2], corners[-1], (size, damage)):
            corners.pop()
        corners.append((size, damage))
    return corners


def _turns(a: tuple[int, float], b: tuple[int, float], c: tuple[int, float]) -> bool:
    """Return whether the edge from a to b is steeper than that from b to c."""
    return (b[1] - a[1]) * (c[0] - b[0]) < (c[1] - b[1]) * (b[0] - a[0])


def suffixes(sizes: Sequence[Ints], damages: Sequence[Floats]) -> list[Relaxation]:
    """Return the relaxations of the units from the first on, from the second on, ..., and of none: U + 1 of them."""
    hulls = [np.array(hull(*unit), dtype=np.float64) for unit in zip(sizes, damages, strict=True)]
    units = np.concatenate([np.full(len(corners) - 1, index) for index, corners in enumerate(hulls)])
    edges = np.concatenate([np.diff(corners, axis=0) for corners in hulls])
    order = np.argsort(edges[:, 1] / edges[:, 0], kind="stable")
    units, edges = units[order], edges[order]
    found = []
    for first in range(len(hulls) + 1):
        start: Any = sum((corners[0] for corners in hulls[first:]), np.zeros(2))
        corners = np.vstack([start, start + np.cumsum(edges[units >= first], axis=0)])
        found.append(Relaxation(corners[:, 0], corners[:, 1]))
    return found
