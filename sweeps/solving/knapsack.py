"""The best assignments within one limit, exactly: sum_u damage[u][l_u] least with sum_u size[u][l_u] <= limit.

Units are decided one after another. A state is a choice for those decided so far, (size, damage). It is dropped

- where its bound, damage plus the least damage of the other units with fractions (``relaxation``), is above that of the worst of
  the ``count`` assignments found so far;
- where ``count`` other states are neither larger nor more damaged: each completion of it has as many that are as good.

A pass has room for a number of states at each unit, keeps those with the smallest bounds, and remembers the smallest bound that
it dropped for want of room. Where no such bound is below the worst assignment found, nothing better can have been lost.
Otherwise another pass has eight times the room, and leaves out the options that cannot lead below that worst one.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from methods.framework.errors import RefusedError
from sweeps.solving.problem import (
    Assignment,
    DamageRows,
    Floats,
    Ints,
    Ranking,
    SizeRows,
    as_damages,
    as_sizes,
    rounding,
    summed,
)
from sweeps.solving.relaxation import Relaxation, suffixes

ROOM = 500
"""States that the first pass keeps at a unit, or ten for each assignment that is asked for."""
MOST_ROOM = 32_000
"""States above which no further pass is tried: damages that are nearly proportional to odd sizes would need more for ever."""
_WIDER = 8
_BEFORE = 6  # states per place of room whose dominance is looked at; the rest is dropped by bound alone
_BLOCK = 256


def best(
    damages: DamageRows,
    sizes: SizeRows,
    limit: int,
    count: int = 1,
    most_room: int = MOST_ROOM,
) -> Ranking:
    """Return the ``count`` best assignments, ascending in damage; among equals the smaller first.

    Of assignments with equal damages that do not all fit into ``count``, any may be returned.

    Args:
        damages: of each option of each unit; finite, of any sign, in any order.
        sizes: of the same options; whole numbers.
        limit: largest sum of sizes.
        count: assignments wanted.
        most_room: states at which to give up the proof; the ranking then says its gap.

    Raises:
        RefusedError: the smallest assignment is above ``limit``.
        ValueError: numbers of options that differ, damages that are not finite, sizes that are not whole or too large.
    """
    damages_U = as_damages(damages)
    sizes_U = as_sizes(sizes, damages_U)
    if count < 1:
        raise ValueError(f"count must be 1 or more, found {count}")
    smallest = sum(int(unit.min()) for unit in sizes_U)
    if smallest > limit:
        raise RefusedError(f"the smallest assignment has size {smallest}, more than {limit}; allow a larger limit")
    search = _Search(sizes_U, damages_U, limit, count)
    room = max(ROOM, 10 * count)
    while (lost := search.run(room)) < search.worst - search.slack and room < most_room:
        room = min(_WIDER * room, most_room)
    levels = search.found()
    ranked = sorted((Assignment(row, summed(damages_U, row)) for row in levels), key=lambda one: one.damage)
    return Ranking(tuple(ranked), max(0.0, ranked[-1].damage - lost) if lost < search.worst - search.slack else 0.0)


class _Search:
    """One problem, searched by passes of different room."""

    def __init__(self, sizes: list[Ints], damages: list[Floats], limit: int, count: int) -> None:
        # Units with few options come first, so that the candidates of a unit grow late.
        self.order = sorted(range(len(sizes)), key=lambda unit: (len(sizes[unit]), unit))
        self.sizes, self.damages = [sizes[unit] for unit in self.order], [damages[unit] for unit in self.order]
        self.limit, self.count = limit, count
        self.relaxations = suffixes(self.sizes, self.damages)
        self.slack = rounding(damages)
        self.pool: dict[tuple[int, ...], tuple[float, int]] = {}
        self.worst = np.inf
        """Damage of the last of ``count`` assignments found by all passes; infinite until there are as many."""

    def found(self) -> list[tuple[int, ...]]:
        """Return the levels of the best ``count`` assignments that all passes found, in the order of the units as given."""
        back = np.argsort(self.order)
        ranked = sorted(self.pool, key=lambda levels: (self.pool[levels], levels))[: self.count]
        return [tuple(levels[place] for place in back) for levels in ranked]

    def run(self, room: int) -> float:
        """Do a pass that keeps ``room`` states at a unit; return the smallest bound that it dropped for want of room."""
        size_S, damage_S, lost = np.zeros(1, np.int64), np.zeros(1), np.inf
        trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
        stages = zip(self.sizes, self.damages, self._useful(), self.relaxations[1:], strict=True)
        for sizes_O, damages_O, options, rest in stages:
            sizes_C = (size_S[:, None] + sizes_O[options]).ravel()
            damages_C = (damage_S[:, None] + damages_O[options]).ravel()
            kept, dropped = self._kept(sizes_C, damages_C, rest, room)
            lost = min(lost, dropped)
            parents, chosen = np.divmod(kept, len(options))
            trail.append((parents, options[chosen]))
            size_S, damage_S = sizes_C[kept], damages_C[kept]
        last = np.lexsort((size_S, damage_S))[: self.count]
        for levels, damage, size in zip(_levels(trail, last), damage_S[last], size_S[last], strict=True):
            self.pool[tuple(map(int, levels))] = (float(damage), int(size))
        if len(self.pool) >= self.count:
            self.worst = sorted(damage for damage, _ in self.pool.values())[self.count - 1]
        return lost

    def _useful(self) -> list[NDArray[np.intp]]:
        """Return the options of each unit with which an assignment may be as good as ``worst``.

        With a price p of size, no assignment within the limit costs less than sum_u min_o (d + p s) - p limit, and one with a
        given option by as much more as that option is above the minimum of its unit.
        """
        price = self.relaxations[0].price(self.limit)
        priced = [damages + price * sizes for sizes, damages in zip(self.sizes, self.damages, strict=True)]
        least = sum(float(unit.min()) for unit in priced) - price * self.limit
        room = self.worst - least + self.slack + rounding([sizes * np.float64(price) for sizes in self.sizes])
        return [np.flatnonzero(unit - unit.min() <= room) for unit in priced]

    def _kept(self, sizes_C: Ints, damages_C: Floats, rest: Relaxation, room: int) -> tuple[NDArray[np.intp], float]:
        """Return the candidates that stay, ascending in size, and the smallest bound dropped for want of room."""
        bounds_C = damages_C + rest.least(self.limit - sizes_C)
        kept = np.flatnonzero(np.isfinite(bounds_C) & (bounds_C <= self.worst + self.slack))
        kept, first = _smallest(bounds_C, kept, _BEFORE * room)
        kept = kept[np.lexsort((damages_C[kept], sizes_C[kept]))]
        kept = kept[undominated(damages_C[kept], self.count)]
        kept, second = _smallest(bounds_C, kept, room)
        return kept, min(first, second)


def _levels(trail: list[tuple[NDArray[np.intp], NDArray[np.intp]]], states: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the options that led to ``states`` of the last unit (P, U)."""
    levels = np.zeros((len(states), len(trail)), np.intp)
    for unit in range(len(trail) - 1, -1, -1):
        parents, options = trail[unit]
        levels[:, unit], states = options[states], parents[states]
    return levels


def _smallest(bounds_C: Floats, kept: NDArray[np.intp], room: int) -> tuple[NDArray[np.intp], float]:
    """Return the ``room`` of ``kept`` with the smallest bounds, in their order, and the smallest bound of the others."""
    if len(kept) <= room:
        return kept, np.inf
    places = np.argpartition(bounds_C[kept], room)
    return kept[np.sort(places[:room])], float(bounds_C[kept[places[room]]])


def undominated(damages_S: Floats, count: int) -> NDArray[np.bool_]:
    """Tell which states have fewer than ``count`` states before them with at most their damage.

    Args:
        damages_S: of states that ascend in size, and among equal sizes in damage (S,).
        count: how many others a state may have that are neither larger nor more damaged, plus one.
    """
    keep = np.zeros(len(damages_S), np.bool_)
    least = np.empty(0)  # the `count` smallest damages so far, ascending
    for start in range(0, len(damages_S), _BLOCK):
        places = np.arange(start, min(start + _BLOCK, len(damages_S)))
        if len(least) == count:
            places = places[damages_S[places] < least[-1]]
        block = damages_S[places]
        earlier = np.searchsorted(least, block, side="right")
        within = np.tril(block[None, :] <= block[:, None], -1).sum(axis=1)
        keep[places[earlier + within < count]] = True
        least = np.sort(np.concatenate([least, block]))[:count]
    return keep
