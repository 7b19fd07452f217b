"""The squared change of each token's output for many sets of removed experts at once.

A token's output depends on the removed experts only through the set that it chooses, and among many candidates few such sets
differ. A chosen set is a whole number whose bits are places in the token's order of preference, and what it costs is remembered.

Shape letters: S sampled tokens, s tokens of one piece, E routed experts, C candidates, K experts that a token chooses, n pairs of
a token and a candidate.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from methods.framework.stats import Array
from methods.kernels.gate_change import Booleans, Indices
from methods.kernels.preferences import Preferences, Sums

Words = NDArray[np.uint64]

WINDOW = 52
"""Places that one number holds: sums of as many powers of two are exact in float64."""
SLOTS = 1024
"""Chosen sets that are remembered for each token; one that falls on the slot of another replaces it."""
PIECE = 2**15
"""Pairs of a token and a candidate that are looked up together."""
EVALUATED = 2**13
"""Pairs that are evaluated together."""
SPREAD = np.uint64(0x9E3779B97F4A7C15)
"""Odd factor that spreads numbers over the slots: 2^64 divided by the golden ratio."""


class ChosenSets:
    """Remembers what the chosen sets of each token cost."""

    def __init__(self, preferences: Preferences) -> None:
        """Begin with nothing remembered."""
        self._tokens = preferences
        self._window = min(preferences.places, WINDOW)
        rank_SE = preferences.rank_SE
        self._power_SE = np.where(rank_SE < self._window, np.exp2(rank_SE.astype(np.float64)), 0.0)
        kinds = len(Sums._fields) if preferences.mass_matters else 1
        # The set on a slot and what it costs lie beside each other, so that a look reaches memory once.
        self._slots = np.full((preferences.tokens * SLOTS, 1 + kinds), ~np.uint64(0))
        self._costs = self._slots.view(np.float64)

    def squares(self, removed_CE: Booleans) -> Array:
        """Return the squared change of the output of each token for each candidate, (S, C)."""
        alive_CE = ~removed_CE
        alive_EC = np.ascontiguousarray(alive_CE.T, dtype=np.float64)
        found_SC = np.empty((self._tokens.tokens, len(removed_CE)))
        step = max(1, PIECE // len(removed_CE))
        for start in range(0, self._tokens.tokens, step):
            part = slice(start, start + step)
            bits_sC = (self._power_SE[part] @ alive_EC).astype(np.uint64)
            total_sC = None if self._tokens.scores_SE is None else self._tokens.scores_SE[part] @ alive_EC
            found_SC[part] = self._looked_up(bits_sC, alive_CE, start, total_sC)
        return found_SC

    def _looked_up(self, bits_sC: Words, alive_CE: Booleans, start: int, total_sC: Array | None) -> Array:
        """Return the squared changes of a piece of tokens, (s, C).

        Args:
            bits_sC: which of the first places stay.
            alive_CE: which experts stay.
            start: first token of the piece.
            total_sC: sum of all scores that are left; None where it does not matter.
        """
        chosen_sC, beyond = self._lowest(bits_sC)
        slot_sC = ((chosen_sC * SPREAD) >> np.uint64(64 - SLOTS.bit_length() + 1)).view(np.int64)
        rows_s1 = np.arange(start, start + len(bits_sC))[:, None]
        slot_sC += rows_s1 * SLOTS
        seen = self._slots.take(slot_sC.ravel(), axis=0)  # before new sets take the slots of others
        values = seen.view(np.float64)
        unknown_sC = seen[:, 0].reshape(chosen_sC.shape) != chosen_sC
        unknown_sC[beyond] = False
        new = np.flatnonzero(unknown_sC)
        for first in range(0, len(new), EVALUATED):
            at = new[first : first + EVALUATED]
            chosen_n, slot_n = chosen_sC.take(at), slot_sC.take(at)
            found = self._evaluated(start + at // chosen_sC.shape[1], self._places(chosen_n))
            self._slots[slot_n, 0] = chosen_n
            for kind, each in enumerate(found, 1):
                values[at, kind] = each
                self._costs[slot_n, kind] = each
        values_sC = [values[:, kind].reshape(chosen_sC.shape) for kind in range(1, values.shape[1])]
        found_sC = values_sC[0]
        if total_sC is not None:
            kept_sC = chosen_sC == (1 << self._tokens.top_k) - 1

            def places(at: tuple[Indices, ...]) -> Indices:
                return self._places(chosen_sC[at])

            found_sC = self._tokens.squares(rows_s1, kept_sC, Sums(*values_sC), total_sC, places)
        for first in range(0, len(beyond[0]), EVALUATED):
            row, candidate = (axis[first : first + EVALUATED] for axis in beyond)
            total_n = None if total_sC is None else total_sC[row, candidate]
            found_sC[row, candidate] = self._one_by_one(start + row, alive_CE[candidate], total_n)
        return found_sC

    def _lowest(self, bits_sC: Words) -> tuple[Words, tuple[Indices, ...]]:
        """Return the first K bits of each number, and where there are fewer though more may lie beyond the window."""
        one, rest_sC, less_sC = np.uint64(1), bits_sC.copy(), np.empty_like(bits_sC)
        beyond: tuple[Indices, ...] = (np.zeros(0, dtype=np.intp), np.zeros(0, dtype=np.intp))
        for nth in range(self._tokens.top_k):
            if nth == self._tokens.top_k - 1 and self._window < self._tokens.places:
                beyond = np.nonzero(rest_sC == 0)
            np.subtract(rest_sC, one, out=less_sC)
            rest_sC &= less_sC  # without its lowest bit; nothing stays nothing
        return bits_sC ^ rest_sC, beyond

    def _places(self, chosen_n: Words) -> Indices:
        """Return the places of the bits of each number, (n, K), ascending."""
        places_Kn = np.empty((self._tokens.top_k, len(chosen_n)), dtype=np.int64)
        rest_n, left_n, one = chosen_n.copy(), np.empty_like(chosen_n), np.uint64(1)
        for place_n in places_Kn:
            np.subtract(rest_n, one, out=left_n)
            left_n &= rest_n
            lowest_n = (rest_n ^ left_n).astype(np.float64)
            np.right_shift(lowest_n.view(np.int64), 52, out=place_n)  # the exponent of a power of two
            rest_n, left_n = left_n, rest_n
        places_Kn -= 1023
        places_Kn[places_Kn < 0] = self._tokens.places
        return places_Kn.T

    def _evaluated(self, rows_n: Indices, places_nK: Indices) -> tuple[Array, ...]:
        """Return what is remembered of chosen sets: the squared change, or the sums that it follows from."""
        sums = self._tokens.sums(rows_n, places_nK)
        return sums if self._tokens.mass_matters else (self._squares(rows_n, places_nK, sums, np.ones(1)),)

    def _one_by_one(self, rows_n: Indices, alive_nE: Booleans, total_n: Array | None) -> Array:
        """Return the squared change of tokens whose choice goes beyond the window, (n,).

        Args:
            rows_n: tokens.
            alive_nE: experts that stay.
            total_n: sum of all scores that are left; None where it does not matter.
        """
        places_nK = self._tokens.first(rows_n, alive_nE, self._tokens.top_k)
        sums = self._tokens.sums(rows_n, places_nK)
        return self._squares(rows_n, places_nK, sums, np.ones(1) if total_n is None else total_n)

    def _squares(self, rows_n: Indices, places_nK: Indices, sums: Sums, total_n: Array) -> Array:
        kept_n = places_nK[:, -1] == self._tokens.top_k - 1
        return self._tokens.squares(rows_n, kept_n, sums, total_n, lambda at: places_nK[at[0]])
