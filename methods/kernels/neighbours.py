"""Losses of all sets of removed experts that differ from one set by a single expert.

Removing one more expert changes nothing for tokens that do not choose it, and bringing one back nothing for those that prefer
others. So what each token would lose is kept, and only tokens that a step reaches are computed again.

Shape letters: S sampled tokens, s some of them, E routed experts, C candidates, K experts that a token chooses, N = K + 1,
B batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from methods.framework.stats import Array
from methods.kernels.gate_change import Booleans, Indices
from methods.kernels.preferences import Preferences, Sums

Losses = Callable[[Booleans], Array]
"""Losses (C,) of candidate sets (C, E)."""


class Neighbours(Protocol):
    """A set of removed experts, and the losses of the sets next to it."""

    experts: int

    def at(self, removed: Sequence[int]) -> None:
        """Go to the set ``removed``."""
        ...

    def removals(self, experts: Sequence[int]) -> Array:
        """Return the loss when each of ``experts`` goes as well, by itself, (C,)."""
        ...

    def exchanges(self, back: int, experts: Sequence[int]) -> Array:
        """Return the loss when ``back`` returns and each of ``experts`` goes instead, by itself, (C,)."""
        ...


class EnumeratedNeighbours:
    """Neighbours by a loss that knows nothing but sets: each is evaluated."""

    def __init__(self, losses: Losses, experts: int) -> None:
        """Begin with all experts.

        Args:
            losses: of sets.
            experts: E.
        """
        self.experts, self._losses, self._gone = experts, losses, list[int]()

    def at(self, removed: Sequence[int]) -> None:
        """Go to the set ``removed``."""
        self._gone = list(removed)

    def removals(self, experts: Sequence[int]) -> Array:
        """Return the loss when each of ``experts`` goes as well, by itself, (C,)."""
        return self._losses(self._sets(self._gone, experts))

    def exchanges(self, back: int, experts: Sequence[int]) -> Array:
        """Return the loss when ``back`` returns and each of ``experts`` goes instead, by itself, (C,)."""
        return self._losses(self._sets([expert for expert in self._gone if expert != back], experts))

    def _sets(self, gone: Sequence[int], experts: Sequence[int]) -> Booleans:
        candidates_CE = np.zeros((len(experts), self.experts), dtype=bool)
        candidates_CE[:, list(gone)] = True
        candidates_CE[np.arange(len(experts)), list(experts)] = True
        return candidates_CE


class PreferredNeighbours:
    """Neighbours where every token has one order of preference: what a step does not reach is not computed again."""

    def __init__(self, preferences: Preferences, starts_B: Indices) -> None:
        """Begin with all experts.

        Args:
            preferences: of the tokens.
            starts_B: first token of each batch, over whose norms the loss is summed.
        """
        self.experts = preferences.experts
        self._tokens, self._starts_B, self._looked = preferences, starts_B, preferences.top_k + 1
        all_but_one = 1.0 - np.eye(self._looked)
        self._others = all_but_one
        self._pairs = np.einsum("ji,li->jli", all_but_one, all_but_one).reshape(-1, self._looked)
        self._squares_ES = np.zeros((self.experts + 1, preferences.tokens))
        self._rows = np.arange(preferences.tokens)
        self._alive_E = np.zeros(self.experts, dtype=bool)
        self._places_SN = np.zeros((preferences.tokens, self._looked), dtype=np.intp)
        self._sums_SN = Sums(*(np.zeros(self._places_SN.shape) for _ in Sums._fields))
        self._total_S = np.ones(preferences.tokens)
        self.at(())

    def at(self, removed: Sequence[int]) -> None:
        """Go to the set ``removed``: one step where it lies next to the present one."""
        alive_E = np.ones(self.experts, dtype=bool)
        alive_E[list(removed)] = False
        changed = np.flatnonzero(alive_E != self._alive_E)
        self._alive_E = alive_E
        reached = self._tokens.rank_SE[:, changed].min(axis=1) <= self._places_SN[:, -1] if len(changed) else []
        rows_s = np.flatnonzero(reached) if len(changed) < self.experts else self._rows
        self._total_S = self._tokens.total_mass(alive_E)
        if len(rows_s):
            self._keep(rows_s, self._tokens.first(rows_s, alive_E, self._looked))

    def removals(self, experts: Sequence[int]) -> Array:
        """Return the loss when each of ``experts`` goes as well, by itself, (C,)."""
        if self._tokens.mass_matters:
            return self._summed(self._by_mass(experts, self._total_S, self._places_SN, self._sums_SN))
        return self._summed(self._squares_ES[list(experts)])

    def exchanges(self, back: int, experts: Sequence[int]) -> Array:
        """Return the loss when ``back`` returns and each of ``experts`` goes instead, by itself, (C,)."""
        rank_S = self._tokens.rank_SE[:, back]
        rows_s = np.flatnonzero(rank_S < self._places_SN[:, -1])
        joined = np.concatenate([self._places_SN[rows_s], rank_S[rows_s, None]], axis=1)
        places_sN = np.sort(joined, axis=1)[:, : self._looked]
        if self._tokens.mass_matters:
            assert self._tokens.scores_SE is not None
            places_SN, sums = self._places_SN.copy(), Sums(*(each.copy() for each in self._sums_SN))
            places_SN[rows_s] = places_sN
            for each, new in zip(sums, self._leaving_one_out(rows_s, places_sN), strict=True):
                each[rows_s] = new
            total_S = self._total_S + self._tokens.scores_SE[:, back]
            return self._summed(self._by_mass(experts, total_S, places_SN, sums))
        squares_CS = self._squares_ES[list(experts)]
        index_E = np.full(self.experts + 1, len(experts))
        index_E[list(experts)] = np.arange(len(experts))
        new_sN = self._squares(rows_s, places_sN, self._leaving_one_out(rows_s, places_sN))
        squares_CS[:, rows_s] = new_sN[:, -1]
        column_sK = index_E[self._experts_at(rows_s, places_sN[:, :-1])]
        row, nth = np.nonzero(column_sK < len(experts))
        squares_CS[column_sK[row, nth], rows_s[row]] = new_sN[row, nth]
        return self._summed(squares_CS)

    def _summed(self, squares_CS: Array) -> Array:
        losses: Array = np.sqrt(np.add.reduceat(squares_CS, self._starts_B, axis=1)).sum(axis=1)
        return losses

    def _keep(self, rows_s: Indices, places_sN: Indices) -> None:
        """Keep what tokens choose, and what each would lose with any one expert more."""
        self._places_SN[rows_s] = places_sN
        sums = self._leaving_one_out(rows_s, places_sN)
        if self._tokens.mass_matters:
            for kept, new in zip(self._sums_SN, sums, strict=True):
                kept[rows_s] = new
            return
        squares_sN = self._squares(rows_s, places_sN, sums)
        self._squares_ES[:, rows_s] = squares_sN[:, -1]
        self._squares_ES[self._experts_at(rows_s, places_sN[:, :-1]), rows_s[:, None]] = squares_sN[:, :-1]

    def _experts_at(self, rows_s: Indices, places_sN: Indices) -> Indices:
        """Return the experts at some places, E where there is none."""
        at_sN = np.minimum(places_sN, self._tokens.places - 1)
        found = self._tokens.order_SP[rows_s[:, None], at_sN]
        return np.where(places_sN < self._tokens.places, found, self.experts)

    def _leaving_one_out(self, rows_s: Indices, places_sN: Indices) -> Sums:
        """Return, for each of the first N places, the sums over the others: what is chosen when its expert goes.

        The last entry is what is chosen as it is. Nothing is subtracted, so that small sums beside large ones are exact.
        """
        scores_sN, cross_sN, inner_sNN = self._tokens.gathered(rows_s, places_sN)
        square_sN = inner_sNN.reshape(len(rows_s), self._looked**2) @ self._pairs
        return Sums(scores_sN @ self._others, cross_sN @ self._others, square_sN)

    def _squares(self, rows_s: Indices, places_sN: Indices, sums: Sums) -> Array:
        """Return the squared change when the expert at each place goes, (s, N); the last as it is."""
        kept_sN = np.zeros(places_sN.shape, dtype=bool)
        kept_sN[:, -1] = self._kept(places_sN)

        def chosen(at: tuple[Indices, ...]) -> Indices:
            return self._without(places_sN[at[0]], at[1])

        return self._tokens.squares(rows_s[:, None], kept_sN, sums, np.ones(1), chosen)

    def _kept(self, places_sN: Indices) -> Booleans:
        """Return which tokens choose what they chose with all experts."""
        return np.asarray(places_sN[:, -2] == self._looked - 2)

    def _without(self, places_sN: Indices, nth_s: Indices) -> Indices:
        """Return the places of each row but one, ascending."""
        left = np.where(np.arange(self._looked) == nth_s[:, None], self._tokens.places, places_sN)
        return np.sort(left, axis=1)[:, :-1]

    def _by_mass(self, experts: Sequence[int], total_S: Array, places_SN: Indices, sums_SN: Sums) -> Array:
        """Return the squared change when each of ``experts`` goes, (C, S), where that changes the weights of every token.

        Args:
            experts: candidates.
            total_S: sum of all scores that are left before.
            places_SN: places that each token looks at.
            sums_SN: over all but one of them.
        """
        scores_SE = self._tokens.scores_SE
        assert scores_SE is not None
        left_CS = total_S - scores_SE[:, list(experts)].T
        now = Sums(*(each[:, -1] for each in sums_SN))
        kept_S = self._kept(places_SN)
        found_CS = self._tokens.squares(self._rows, kept_S, now, left_CS, lambda at: places_SN[at[1], :-1])
        place_E = np.full(self.experts + 1, len(experts))
        place_E[list(experts)] = np.arange(len(experts))
        column_SK = place_E[self._experts_at(self._rows, places_SN[:, :-1])]
        row, nth = np.nonzero(column_SK < len(experts))
        column = column_SK[row, nth]
        found_CS[column, row] = self._tokens.squares(
            row,
            np.zeros(len(row), dtype=bool),
            Sums(*(each[row, nth] for each in sums_SN)),
            left_CS[column, row],
            lambda at: self._without(places_SN[row[at[0]]], nth[at[0]]),
        )
        return found_CS
