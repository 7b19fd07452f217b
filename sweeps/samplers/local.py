"""Local search: from one of the best plans, a switch of levels that was not tried yet.

Letters: N trials, M moves, A axes.
"""

from __future__ import annotations

import numpy as np

from sweeps.samplers.history import History, Tried
from sweeps.samplers.level_sampler import LevelSampler, SpaceOf
from sweeps.samplers.moves import drawn, several, untried
from sweeps.samplers.surrogate import MOST, fitted, smoothing
from sweeps.space.levels import Levels, LevelSpace

ENOUGH = 4
"""Trials from which a model of them is made."""
_PARENTS = 8
_MOST_SWITCHES = 6
_MOST_ATTEMPTS = 256
"""Moves that a draw tries; near plans whose neighbours are nearly all known it compares fewer candidates instead."""


class LocalSampler(LevelSampler):
    """Moves from one of the best plans, mostly the best, by one switch or a few; never to a plan that was proposed before.

    With several ``candidates`` as many moves are drawn, and the one is proposed that a Gaussian process of the trials so far
    expects to gain most from.
    """

    def __init__(self, space_of: SpaceOf, seed: int, candidates: int, past: History | None = None) -> None:
        """Prepare one draw.

        Args:
            space_of: the assignments under shared parameters.
            seed: of this draw.
            candidates: moves that are compared.
            past: what was read of the study before; None: nothing.
        """
        super().__init__(space_of, seed, past)
        self.candidates = candidates
        self._attempts = 0

    def proposed(self, past: History) -> tuple[Levels, Tried | None]:
        """Return a new move from one of the best plans."""
        moves: list[tuple[Levels, Tried]] = []
        self._attempts = 0
        for _ in range(self.candidates if len(past.ranked) >= ENOUGH else 1):
            levels_A, parent, new = self._move(past)
            moves.append((levels_A, parent))
            if not new or self._attempts >= _MOST_ATTEMPTS:
                break  # around these plans all is known, or nearly all
        if len(moves) == 1:
            return moves[0]
        highest_A = np.maximum(self.space_of({}).highest, 1)
        ranked = past.ranked[:MOST]
        values_N = np.array([one.value for one in ranked])
        process = fitted(np.array([one.levels for one in ranked]) / highest_A, values_N, smoothing(self.space_of({})))
        points_MA = np.array([levels_A for levels_A, _ in moves]) / highest_A
        return moves[int(process.improvement(points_MA).argmax())]

    def _move(self, past: History) -> tuple[Levels, Tried, bool]:
        """Return a move, where it starts, and whether a new plan was near; where none was, a random one is taken."""
        ranked = past.ranked
        # Half of the moves start from the best, a quarter from the second, and so on.
        parent = ranked[min(int(self.rng.geometric(0.5)) - 1, len(ranked) - 1, _PARENTS - 1)]
        space = self.space_of(parent.shared)
        found = untried(lambda attempt: self._switched(space, parent, attempt), self.known(past, parent))
        if found is not None:
            return found, parent, True
        found = untried(lambda attempt: drawn(space, self.rng), self.known(past, parent))
        return (found if found is not None else drawn(space, self.rng)), parent, False

    def _switched(self, space: LevelSpace, parent: Tried, attempt: int) -> Levels:
        """Return a neighbour; the longer none is new, the further away."""
        self._attempts += 1
        count = min(int(self.rng.geometric(0.4)) + attempt // 16, _MOST_SWITCHES)
        most = max(1, int(space.highest.max()) // 3 + attempt // 16)
        return several(space, np.array(parent.levels, dtype=np.int64), self.rng, count, most)
