"""Loss of any subset of a layer's experts, from inner products of their outputs: no expert runs again.

For one token let d be the weights before less the weights after a removal, and K the inner products of the experts'
outputs. The routed output changes by sum_j d_j f_j, whose squared norm is d^T K d. Shared experts cancel.

Shape letters: S sampled tokens, E routed experts, C candidates, B batches.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from methods.framework.inventory import Router
from methods.framework.stats import Array
from methods.kernels.chosen_sets import ChosenSets
from methods.kernels.gate_change import Booleans, RoutedGateChange, ordered_by_preference
from methods.kernels.neighbours import EnumeratedNeighbours, Neighbours, PreferredNeighbours
from methods.kernels.preferences import Preferences

CANDIDATES_PIECE = 128
"""Candidates that are evaluated together."""


class SubsetLoss:
    """Sum over batches of the Frobenius norm of (routed output of all experts - routed output of the survivors).

    Survivors are routed as the sliced checkpoint routes: the rows of the others are out of the softmax and of the top-k.
    With inner products in float32, changes of less than about 3e-4 of the outputs' norm drown in their rounding.

    *Source*: the loss of arXiv 2402.14800, section 3.2, and of the search of arXiv 2411.01016, evaluated by inner products.

    *Differs*: tokens are sampled evenly from the corpus, and a batch is one of equal, consecutive parts of them. Batches
    matter: a sum of norms weighs a batch of large errors less than the norm of the sum would.
    """

    def __init__(
        self,
        router: Router,
        top_k: int,
        logits_SE: Array,
        gram_SXX: Array,
        correction_E: Array | None = None,
        *,
        batches: int = 16,
        most_removed: int | None = None,
        target: bool = False,
    ) -> None:
        """Prepare for candidates that remove up to ``most_removed`` experts.

        Args:
            router: semantics of the family.
            top_k: experts per token, or all that stay where these are fewer.
            logits_SE: router logits of the sampled tokens.
            gram_SXX: inner products of the experts' outputs at each token, X = E; any float type, read piece by piece.
            correction_E: bias on the choice; read where the router has one.
            batches: number of batches; no more than there are tokens.
            most_removed: largest number of experts that a candidate removes; None: all.
            target: whether ``gram_SXX`` has X = E + 1, index E being a target output from which the loss is counted in
                place of the output of all experts.
        """
        tokens, self.experts = logits_SE.shape
        self._most = self.experts if most_removed is None else most_removed
        self._target = target
        self._change: ChosenSets | RoutedGateChange
        self._preferences: Preferences | None = None
        if ordered_by_preference(router):
            self._preferences = Preferences(router, top_k, logits_SE, gram_SXX, correction_E, self._most, target)
            self._change = ChosenSets(self._preferences)
        else:
            self._change = RoutedGateChange(router, top_k, logits_SE, gram_SXX, correction_E, target)
        parts = min(batches, tokens)
        self._starts_B = np.arange(parts) * tokens // parts

    def loss(self, kept: Iterable[int]) -> float:
        """Return the loss, in output x tokens^0.5, when only ``kept`` stay."""
        removed_1E = np.ones((1, self.experts), dtype=bool)
        removed_1E[0, list(kept)] = False
        return float(self.losses(removed_1E)[0])

    def losses(self, removed_CE: Booleans) -> Array:
        """Return the loss of each candidate, shape (C,); a candidate is the set of experts that it removes.

        Raises:
            ValueError: a candidate removes more experts than was said, or all.
        """
        counts_C = removed_CE.sum(axis=1)
        if counts_C.max(initial=0) > self._most or (counts_C == self.experts).any():
            raise ValueError(
                f"a candidate removes {counts_C.max()} of {self.experts} experts; prepared for {self._most}"
            )
        pieces = [
            self._losses(removed_CE[start : start + CANDIDATES_PIECE])
            for start in range(0, len(removed_CE), CANDIDATES_PIECE)
        ]
        return np.concatenate(pieces) if pieces else np.zeros(0)

    def neighbours(self) -> Neighbours:
        """Return the losses of the sets next to one, which begin at the complete layer."""
        if self._preferences is None:
            return EnumeratedNeighbours(self.losses, self.experts)
        return PreferredNeighbours(self._preferences, self._starts_B)

    def _losses(self, removed_CE: Booleans) -> Array:
        squares_SC = self._change.squares(removed_CE)
        losses_C: Array = np.sqrt(np.add.reduceat(squares_SC, self._starts_B, axis=0)).sum(axis=0)
        if not self._target:
            losses_C[~removed_CE.any(axis=1)] = 0.0  # nothing removed, nothing changed: not even by rounding
        return losses_C
