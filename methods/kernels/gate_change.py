"""How the weights of the experts' outputs change, token by token, when some experts are removed from a layer.

Removing experts takes their rows out of the router: what is left is a softmax over fewer logits (or the same sigmoids) and
a new top-k. Shape letters: S sampled tokens, s tokens of one piece, E routed experts, C candidates, P places in a token's
order of preference, X places or experts of a Gram matrix.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from methods.framework.errors import RefusedError
from methods.framework.inventory import Router
from methods.framework.stats import Array

Booleans = NDArray[np.bool_]
Indices = NDArray[np.intp]

GRAM_PIECE = 2**22
"""Elements of the Gram statistic that are read at a time."""


class GateChange(Protocol):
    """Weights before less weights after, for many candidates at once, and the Gram matrix in the same coordinates."""

    touching_all: bool
    """Whether any removal changes the weights of every token."""

    def touched(self, removed_E: Booleans) -> Booleans:
        """Return which tokens use any of ``removed_E``, shape (S,)."""
        ...

    def of(self, rows: Indices, removed_CE: Booleans) -> tuple[Array, Array]:
        """Return the change (s, X, C) at the tokens ``rows``, and their Gram matrices (s, X, X) in float64."""
        ...


def ordered_by_preference(router: Router) -> bool:
    """Return whether each token ranks its experts in an order that the removal of others leaves alone.

    Not so where groups compete, nor where a correction bias is added to a softmax that grows with each removal; nor where
    weights depend on experts that are close, but not chosen.
    """
    if router.score == "sparsemixer":
        return False
    return router.groups == router.groups_kept and not (router.correction_bias and router.score == "softmax")


class PreferredGateChange:
    """Change of weights where every token has one order of preference.

    When r experts go, none but the first k + r of a token's order can be chosen, so only they are kept, in that order.
    """

    def __init__(
        self,
        router: Router,
        top_k: int,
        logits_SE: Array,
        gram_SXX: Array,
        correction_E: Array | None,
        most_removed: int,
        target: bool,
    ) -> None:
        """Sort each token's experts once, and read the Gram statistic piece by piece.

        Args:
            router: semantics of the family.
            top_k: experts per token.
            logits_SE: router logits.
            gram_SXX: inner products of the experts' outputs; with ``target``, index E is the target.
            correction_E: bias on the choice.
            most_removed: largest number of experts that a candidate removes.
            target: whether weights change from 1 on the target, rather than from those of the complete layer.
        """
        tokens, experts = logits_SE.shape
        self._router, self._top_k, self._target = router, top_k, target
        logits_SE = np.asarray(logits_SE, dtype=np.float64)
        choice_SE = logits_SE
        if router.score == "softmax":
            scores_SE = np.exp(logits_SE - logits_SE.max(axis=1, keepdims=True))
        else:
            from scipy.special import expit  # here, so that describing a method imports no scipy

            scores_SE = expit(logits_SE)
            if router.correction_bias:
                assert correction_E is not None
                choice_SE = scores_SE + correction_E
        self._places = min(experts, top_k + most_removed)
        self._order_SP = np.argsort(-choice_SE, axis=1, kind="stable")[:, : self._places].copy()
        self._scores_SP = np.take_along_axis(scores_SE, self._order_SP, axis=1)
        self._mass_matters = router.score == "softmax" and (not router.renormalise or router.eps > 0.0)
        self._scores_SE = scores_SE if self._mass_matters else None
        self.touching_all = self._mass_matters or target
        self._gram_SXX = self._by_preference(gram_SXX)
        nothing_C1 = np.zeros((1, experts), dtype=bool)
        self._before_SP = self._after(np.arange(tokens), nothing_C1, self._places)[:, :, 0]

    def _by_preference(self, gram_SXX: Array) -> Array:
        """Return the Gram matrix of each token in its order of preference, the target (if any) first; (S, X, X)."""
        tokens, size = gram_SXX.shape[:2]
        order_SX = self._order_SP
        if self._target:
            order_SX = np.concatenate([np.full((tokens, 1), size - 1), order_SX], axis=1)
        found = np.empty((*order_SX.shape, order_SX.shape[1]), dtype=gram_SXX.dtype)
        step = max(1, GRAM_PIECE // size**2)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            flat = np.ascontiguousarray(gram_SXX[part]).reshape(-1, size * size)
            index = order_SX[part, :, None] * size + order_SX[part, None, :]
            found[part] = np.take_along_axis(flat, index.reshape(len(flat), -1), axis=1).reshape(index.shape)
        return found

    def touched(self, removed_E: Booleans) -> Booleans:
        """Return which tokens choose any of ``removed_E`` in the complete layer, shape (S,)."""
        return np.asarray(removed_E[self._order_SP[:, : self._top_k]].any(axis=1))

    def of(self, rows: Indices, removed_CE: Booleans) -> tuple[Array, Array]:
        """Return the change of weights (s, X, C) at the tokens ``rows``, and their Gram matrices (s, X, X)."""
        places = min(self._places, self._top_k + int(removed_CE.sum(axis=1).max()))
        after = self._after(rows, removed_CE, places)
        if self._target:
            change = np.concatenate([np.ones((len(rows), 1, len(removed_CE))), np.negative(after, out=after)], axis=1)
        else:
            change = np.subtract(self._before_SP[rows, :places, None], after, out=after)
            if not self._mass_matters:  # then a token that loses none of its experts keeps its weights, to the last bit
                touched_sC = np.asarray(removed_CE.T[self._order_SP[rows, : self._top_k]].any(axis=1))
                change *= touched_sC[:, None]
        size = change.shape[1]
        return change, self._gram_SXX[rows, :size, :size].astype(np.float64)

    def _after(self, rows: Indices, removed_CE: Booleans, places: int) -> Array:
        """Return the weights (s, P, C) at the first ``places`` places when ``removed_CE`` have gone."""
        alive_EC = np.ascontiguousarray(~removed_CE.T)
        chosen_sPC = alive_EC[self._order_SP[rows, :places]]
        if places > self._top_k:
            taken_sC = chosen_sPC[:, : self._top_k].sum(axis=1, dtype=np.int16)
            for place in range(self._top_k, places):
                chosen_sPC[:, place] &= taken_sC < self._top_k
                taken_sC += chosen_sPC[:, place]
        weights_sPC = self._scores_SP[rows, :places, None] * chosen_sPC
        mass_sC: Array = np.ones((len(rows), len(removed_CE)))
        if self._scores_SE is not None:
            mass_sC = self._scores_SE[rows] @ alive_EC.astype(np.float64)
        if self._router.renormalise:
            mass_sC = weights_sPC.sum(axis=1) + self._router.eps * mass_sC
        weights_sPC *= (self._router.scale / np.maximum(mass_sC, np.finfo(np.float64).tiny))[:, None]
        return weights_sPC


class RoutedGateChange:
    """Change of weights through the family's own routing on masked scores: for group-limited routers, and slower."""

    touching_all = True

    def __init__(
        self,
        router: Router,
        top_k: int,
        logits_SE: Array,
        gram_SXX: Array,
        correction_E: Array | None,
        target: bool,
    ) -> None:
        """Hold the statistics; see ``PreferredGateChange``.

        Args:
            router: how logits become weights.
            top_k: K.
            logits_SE: of the router at the sampled tokens.
            gram_SXX: inner products of the experts' outputs at each of them.
            correction_E: added to scores for the choice alone; read only where the router has one.
            target: as in ``PreferredGateChange``.
        """
        self._router, self._top_k, self._target = router, top_k, target
        self._logits_SE = np.asarray(logits_SE, dtype=np.float64)
        self._correction_E = correction_E if router.correction_bias else None
        self._gram_SXX = gram_SXX
        tokens, experts = logits_SE.shape
        self._before_SE = self._after(np.arange(tokens), np.zeros((1, experts), dtype=bool))[:, :, 0]

    def touched(self, removed_E: Booleans) -> Booleans:
        """Return True for every token: a removal may also change which groups a token chooses from."""
        return np.ones(len(self._logits_SE), dtype=bool)

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
