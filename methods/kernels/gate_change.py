"""How the weights of the experts' outputs change, token by token, when some experts are removed from a layer.

Removing experts takes their rows out of the router: what is left is a softmax over fewer logits (or the same sigmoids) and
a new top-k. Shape letters: S sampled tokens, s tokens of one piece, E routed experts, C candidates, X experts and maybe the
target.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from methods.framework.errors import RefusedError
from methods.framework.inventory import Router
from methods.framework.stats import Array

Booleans = NDArray[np.bool_]
Indices = NDArray[np.intp]

ELEMENTS_PIECE = 2**18
"""Numbers in one working array: they stay in the processor's second-level cache."""


def ordered_by_preference(router: Router) -> bool:
    """Return whether each token ranks its experts in an order that the removal of others leaves alone.

    Not so where groups compete, nor where a correction bias is added to a softmax that grows with each removal; nor where
    weights depend on experts that are close, but not chosen.
    """
    if router.score == "sparsemixer":
        return False
    return router.groups == router.groups_kept and not (router.correction_bias and router.score == "softmax")


class RoutedGateChange:
    """Change of weights through the family's own routing on masked scores: for group-limited routers, and slower."""

    def __init__(
        self,
        router: Router,
        top_k: int,
        logits_SE: Array,
        gram_SXX: Array,
        correction_E: Array | None,
        target: bool,
    ) -> None:
        """Hold the statistics.

        Args:
            router: how logits become weights.
            top_k: K.
            logits_SE: of the router at the sampled tokens.
            gram_SXX: inner products of the experts' outputs at each of them.
            correction_E: added to scores for the choice alone; read only where the router has one.
            target: whether index E of ``gram_SXX`` is a target, from whose weight of 1 weights change.
        """
        self._router, self._top_k, self._target = router, top_k, target
        self._logits_SE = np.asarray(logits_SE, dtype=np.float64)
        self._correction_E = correction_E if router.correction_bias else None
        self._gram_SXX = gram_SXX
        tokens, experts = logits_SE.shape
        self._before_SE = self._after(np.arange(tokens), np.zeros((1, experts), dtype=bool))[:, :, 0]

    def squares(self, removed_CE: Booleans) -> Array:
        """Return the squared change d^T K d of the output of each token for each candidate, (S, C), none negative."""
        tokens = len(self._logits_SE)
        squares_SC = np.empty((tokens, len(removed_CE)))
        step = max(1, ELEMENTS_PIECE // removed_CE.size)
        for start in range(0, tokens, step):
            rows_s = np.arange(start, min(start + step, tokens))
            change_sXC, gram_sXX = self.of(rows_s, removed_CE)
            squares_SC[rows_s] = np.einsum("sxc,sxc->sc", gram_sXX @ change_sXC, change_sXC)
        return np.maximum(squares_SC, 0.0, out=squares_SC)

    def of(self, rows: Indices, removed_CE: Booleans) -> tuple[Array, Array]:
        """Return the change of weights (s, X, C) at the tokens ``rows``, and their Gram matrices (s, X, X)."""
        self._check(removed_CE)
        after = self._after(rows, removed_CE)
        gram = np.asarray(self._gram_SXX[rows], dtype=np.float64)
        if self._target:
            return np.concatenate([-after, np.ones((len(rows), 1, len(removed_CE)))], axis=1), gram
        before = self._before_SE[rows, :, None]
        change = before - after
        if self._router.renormalise and (self._router.eps == 0.0 or self._router.score == "sigmoid"):
            same_sC = ((before > 0.0) == (after > 0.0)).all(
                axis=1
            )  # the same experts have the same weights, but rounded
            change *= ~same_sC[:, None]
        return change, gram

    def _check(self, removed_CE: Booleans) -> None:
        groups = self._router.groups
        needed = self._router.fewest_experts(self._top_k) // groups if groups > 1 else 1
        left = int((~removed_CE).reshape(len(removed_CE), groups, -1).sum(axis=2).min())
        if left < needed:
            raise RefusedError(
                f"a set of experts leaves {left} in one of the router's {groups} groups, and each needs {needed}"
            )

    def _after(self, rows: Indices, removed_CE: Booleans) -> Array:
        """Return the weights (s, E, C) when ``removed_CE`` have gone."""
        import torch

        from methods.kernels.routing import route

        shape = (len(rows), *removed_CE.shape)
        logits = np.where(removed_CE, -np.inf, self._logits_SE[rows, None, :]).reshape(-1, shape[-1])
        correction = None
        if self._correction_E is not None:
            masked_CE = np.where(removed_CE, -np.inf, self._correction_E)
            correction = torch.from_numpy(np.broadcast_to(masked_CE, shape).reshape(-1, shape[-1]).copy())
        routing = route(torch.from_numpy(logits), self._router, self._top_k, correction)
        weights = torch.zeros_like(routing.scores_TE).scatter_(1, routing.indices_TK, routing.weights_TK)
        dense_sCE: Array = weights.numpy().reshape(shape)
        return np.ascontiguousarray(dense_sCE.swapaxes(1, 2))
