"""EvoESAP: a population of plans, of which an elite survives and multiplies."""

from __future__ import annotations

import numpy as np

from sweeps.samplers.history import History, Tried
from sweeps.samplers.level_sampler import LevelSampler, SpaceOf
from sweeps.samplers.moves import drawn, several, untried
from sweeps.space.levels import Levels, LevelSpace, Reals

_MOST_SWITCHES = 3
_MOST_LEVELS = 4


class EvoEsapSampler(LevelSampler):
    """Generations of a population: shapes over the depth and random plans first, then children of the elite.

    *Source*: arXiv 2603.06003: mutations are 1 to 3 switches (the smaller of two draws) of 1 to 4 levels. *Differs*: a child that
    was proposed before is drawn again; removed experts are counted there, levels here.
    """

    def __init__(self, space_of: SpaceOf, seed: int, population: int, elites: int, past: History | None = None) -> None:
        """Prepare one draw.

        Args:
            space_of: the assignments under shared parameters.
            seed: of this draw.
            population: plans of a generation.
            elites: of them survive.
            past: what was read of the study before; None: nothing.
        """
        super().__init__(space_of, seed, past)
        self.population, self.elites = population, min(elites, population - 1)

    def proposed(self, past: History) -> tuple[Levels, Tried | None]:
        """Return the next plan of the present generation."""
        born = len(past.children)
        if born < self.population:
            parent = past.ranked[0]
            return self._first(self.space_of(parent.shared), born), parent
        parent = self._parent(past, born)
        space, levels_A = self.space_of(parent.shared), np.array(parent.levels, dtype=np.int64)

        def child(attempt: int) -> Levels:
            count = int(self.rng.integers(1, _MOST_SWITCHES + 1, size=2).min()) + attempt // 16
            return several(space, levels_A, self.rng, count, _MOST_LEVELS)

        found = untried(child, self.known(past, parent))
        return (found if found is not None else child(0)), parent

    def _first(self, space: LevelSpace, number: int) -> Levels:
        """Return a plan of the first generation: each shape once, then random ones."""
        found = shapes(len(space.axes))
        if number >= len(found):
            return drawn(space, self.rng)
        return space.projected(found[number] * space.highest)

    def _parent(self, past: History, born: int) -> Tried:
        """Return one of the best plans of all finished generations; those that survive are not measured again."""
        generations = (born - self.population) // (self.population - self.elites)
        done = self.population + generations * (self.population - self.elites)
        elite = past.best(self.elites, done)
        return elite[int(self.rng.integers(len(elite)))]


def shapes(count: int) -> list[Reals]:
    """Return ten ways in which levels may be spread over ``count`` axes, as shares of the largest, [A] each.

    Rising, falling, high or low in the middle, falling or rising steeply, the first or last quarter high, every other one high,
    flat with low ends.
    """
    depth_A = np.linspace(0.0, 1.0, count) if count > 1 else np.zeros(1)
    middle_A = 1.0 - np.abs(2.0 * depth_A - 1.0)
    first_A, last_A = (depth_A < 0.25) * 0.5 + 0.5, (depth_A > 0.75) * 0.5 + 0.5
    every_A = np.where(np.arange(count) % 2 == 0, 1.0, 0.5)
    steep_A = np.exp(-3.0 * depth_A)
    flat_A = np.minimum(1.0, 0.5 + middle_A)
    return [depth_A, 1 - depth_A, middle_A, 1 - middle_A, steep_A, steep_A[::-1], first_A, last_A, every_A, flat_A]
