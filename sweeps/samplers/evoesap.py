"""EvoESAP: a population of plans, of which an elite survives and multiplies."""

from __future__ import annotations

import numpy as np

from sweeps.samplers.history import History, Tried
from sweeps.samplers.level_sampler import LevelSampler, SpaceOf
from sweeps.samplers.moves import drawn, several, shapes, untried
from sweeps.space.levels import Levels, LevelSpace

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
        found = shapes(space)
        return found[number] if number < len(found) else drawn(space, self.rng)

    def _parent(self, past: History, born: int) -> Tried:
        """Return one of the best plans of all finished generations; those that survive are not measured again."""
        generations = (born - self.population) // (self.population - self.elites)
        done = self.population + generations * (self.population - self.elites)
        elite = past.best(self.elites, done)
        return elite[int(self.rng.integers(len(elite)))]
