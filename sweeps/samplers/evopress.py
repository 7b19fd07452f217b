"""EvoPress: one plan and its children, of which the best replaces it."""

from __future__ import annotations

import math

import numpy as np

from sweeps.samplers.history import History, Tried
from sweeps.samplers.level_sampler import LevelSampler, SpaceOf
from sweeps.samplers.moves import several, untried
from sweeps.space.levels import Levels

_MOST_SWITCHES = 3


class EvoPressSampler(LevelSampler):
    """(1 + lambda) generations of level switches.

    *Source*: arXiv 2410.14649. The number of switches is the smaller of two draws from 1 to 3, each by one level. *Differs*: a
    child that was proposed before is drawn again, after a while with more switches; selection in stages is left to the pruner of
    the study, whose stopped trials count as children that lost.
    """

    def __init__(self, space_of: SpaceOf, seed: int, offspring: int, past: History | None = None) -> None:
        """Prepare one draw.

        Args:
            space_of: the assignments under shared parameters.
            seed: of this draw.
            offspring: children of a generation.
            past: what was read of the study before; None: nothing.
        """
        super().__init__(space_of, seed, past)
        self.offspring = offspring

    def proposed(self, past: History) -> tuple[Levels, Tried | None]:
        """Return a child of the best plan of all finished generations."""
        parent = self.parent(past)
        space, levels_A = self.space_of(parent.shared), np.array(parent.levels, dtype=np.int64)

        def child(attempt: int) -> Levels:
            count = int(self.rng.integers(1, _MOST_SWITCHES + 1, size=2).min()) + attempt // 16
            return several(space, levels_A, self.rng, count)

        found = untried(child, self.known(past, parent))
        return (found if found is not None else child(0)), parent

    def parent(self, past: History) -> Tried:
        """Return the best of the starts and of all children of finished generations."""
        # Where no start was measured in full, the first child is one.
        first = 0 if any(math.isfinite(one.value) for one in past.starts) else 1
        born = max(0, len(past.children) - first) // self.offspring * self.offspring
        found = past.best(1, min(first + born, len(past.children)))[0]
        return found if math.isfinite(found.value) else past.ranked[0]
