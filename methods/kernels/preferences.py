"""Tokens whose experts have one order of preference, and the squared change of their output for any set that is chosen.

Where r experts go, a token chooses the first k of its order that are left, so only its first k + r *places* matter. For one
token let t be the output before, y the sum of the chosen outputs times their scores and rho the factor that makes scores
weights: the squared change is |t - rho y|^2 = |t|^2 - 2 rho t.y + rho^2 |y|^2, all from inner products of experts' outputs.

Shape letters: S sampled tokens, s some of them (one may come twice), E routed experts, C candidates, P places, N places that are
looked at, X experts and maybe the target.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from methods.framework.inventory import Router
from methods.framework.stats import Array
from methods.kernels.gate_change import Booleans, Indices

GRAM_PIECE = 2**22
"""Elements of the Gram statistic that are read at a time."""
CANCELLED = 1e-6
"""Squared changes below this share of the squared output are computed again, without adding up what cancels."""
PAIRS_PIECE = 2**14
"""Chosen sets that are evaluated together."""


PlacesOf = Callable[[tuple[Indices, ...]], Indices]
"""From the indices of some entries of an array to the places that are chosen there; ``Preferences.places`` is none."""


class Sums(NamedTuple):
    """What the squared change of a token needs of the experts that it chooses.

    Args:
        mass: sum of their scores.
        cross: t.y.
        square: |y|^2.
    """

    mass: Array
    cross: Array
    square: Array


class Preferences:
    """The order of preference of every sampled token of a layer, with scores and inner products in that order."""

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
            target: whether t is the target, rather than the output of the complete layer.
        """
        tokens, experts = logits_SE.shape
        self.tokens, self.experts, self.top_k, self._target = tokens, experts, top_k, target
        self._router = router
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
        self.places = min(experts, top_k + most_removed)
        order_SE = np.argsort(-choice_SE, axis=1, kind="stable")
        self.rank_SE = np.empty((tokens, experts), dtype=np.int16)
        np.put_along_axis(self.rank_SE, order_SE, np.arange(experts, dtype=np.int16)[None], axis=1)
        self.order_SP = order_SE[:, : self.places].copy()
        self._scores_SP = np.take_along_axis(scores_SE, self.order_SP, axis=1)
        self.mass_matters = router.score == "softmax" and (not router.renormalise or router.eps > 0.0)
        self.scores_SE = scores_SE if self.mass_matters else None
        self._gram_SPP = self._by_preference(gram_SXX)
        chosen = min(top_k, experts)
        rho_S = self.factor(self._scores_SP[:, :chosen].sum(axis=1), self.total_mass(np.ones(experts, dtype=bool)))
        self._rho_S, self._before_SK = rho_S, rho_S[:, None] * self._scores_SP[:, :chosen]
        if target:
            own_S, cross_SE = gram_SXX[:, -1, -1], gram_SXX[:, -1, :-1]
            self._own_S = np.asarray(own_S, dtype=np.float64)
            self._cross_SP = np.take_along_axis(np.asarray(cross_SE, dtype=np.float64), self.order_SP, axis=1)
        else:
            self._cross_SP = np.matmul(self._gram_SPP[:, :, :chosen], self._before_SK[:, :, None])[:, :, 0]
            self._own_S = (self._cross_SP[:, :chosen] * self._before_SK).sum(axis=1)

    def _by_preference(self, gram_SXX: Array) -> Array:
        """Return the Gram matrix of each token in its order of preference, (S, P, P)."""
        tokens, size = gram_SXX.shape[:2]
        found = np.empty((tokens, self.places, self.places), dtype=gram_SXX.dtype)
        step = max(1, GRAM_PIECE // size**2)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            flat = np.ascontiguousarray(gram_SXX[part]).reshape(-1)
            order_sP = self.order_SP[part]
            base_s = np.arange(len(order_sP))[:, None, None] * size**2
            np.take(flat, base_s + order_sP[:, :, None] * size + order_sP[:, None, :], out=found[part])
        return found

    def total_mass(self, alive_E: Booleans) -> Array:
        """Return the sum of the scores of the experts that stay, (S,); 1 where weights do not depend on it."""
        if self.scores_SE is None:
            return np.ones(self.tokens)
        mass: Array = self.scores_SE @ alive_E.astype(np.float64)
        return mass

    def factor(self, mass: Array, total: Array) -> Array:
        """Return rho, which turns the scores of the chosen experts into weights.

        Args:
            mass: sum of the chosen scores.
            total: sum of all scores that are left.
        """
        router = self._router
        divisor = mass + router.eps * total if router.renormalise else total
        return np.asarray(router.scale / np.maximum(divisor, np.finfo(np.float64).tiny))

    def first(self, rows_s: Indices, alive_E: Booleans, count: int) -> Indices:
        """Return the first ``count`` places whose experts stay, (s, N), ascending; ``places`` where there are no more.

        Args:
            rows_s: tokens.
            alive_E: experts that stay, or those of each row, (s, E).
            count: N.
        """
        order_sP = self.order_SP[rows_s]
        alive_sP = alive_E[order_sP] if alive_E.ndim == 1 else np.take_along_axis(alive_E, order_sP, axis=1)
        row, place = np.nonzero(alive_sP)
        numbers_s = np.bincount(row, minlength=len(rows_s))
        nth_sN = np.arange(count)[None, :]
        index_sN = (np.cumsum(numbers_s) - numbers_s)[:, None] + nth_sN
        there_sN = nth_sN < numbers_s[:, None]
        found: Indices = np.where(there_sN, np.append(place, 0)[np.where(there_sN, index_sN, 0)], self.places)
        return found

    def gathered(self, rows_s: Indices, places_sN: Indices) -> tuple[Array, Array, Array]:
        """Return scores and cross products (s, N) and score-weighted inner products (s, N, N); 0 at missing places.

        Args:
            rows_s: tokens.
            places_sN: places of each, ``places`` where missing.
        """
        there_sN = places_sN < self.places
        at_sN = np.minimum(places_sN, self.places - 1)
        flat_sN = rows_s[:, None] * self.places + at_sN
        scores_sN = self._scores_SP.ravel()[flat_sN] * there_sN
        cross_sN = self._cross_SP.ravel()[flat_sN] * scores_sN
        inner_sNN = self._gram_SPP.reshape(-1)[flat_sN[:, :, None] * self.places + at_sN[:, None, :]]
        return scores_sN, cross_sN, inner_sNN * scores_sN[:, :, None] * scores_sN[:, None, :]

    def sums(self, rows_s: Indices, places_sN: Indices) -> Sums:
        """Return the sums over all of ``places_sN``, each of shape (s,).

        Args:
            rows_s: tokens.
            places_sN: places of each, ``places`` where missing.
        """
        at_Ns = np.ascontiguousarray(places_sN.T)
        there_Ns = at_Ns < self.places
        at_Ns = np.minimum(at_Ns, self.places - 1)
        flat_Ns = rows_s * self.places + at_Ns
        scores_Ns = self._scores_SP.ravel().take(flat_Ns) * there_Ns
        square_s, gram = np.zeros(len(rows_s)), self._gram_SPP.reshape(-1)
        for nth, score_s in enumerate(scores_Ns):  # one half of each symmetric matrix
            inner_Ns = gram.take(flat_Ns[nth] * self.places + at_Ns[: nth + 1]) * scores_Ns[: nth + 1]
            square_s += (2.0 * inner_Ns[:nth].sum(axis=0) + inner_Ns[nth]) * score_s
        cross_s = (self._cross_SP.ravel().take(flat_Ns) * scores_Ns).sum(axis=0)
        return Sums(scores_Ns.sum(axis=0), cross_s, square_s)

    def squares(self, rows: Indices, kept: Booleans, sums: Sums, total: Array, places: PlacesOf) -> Array:
        """Return the squared change of the output of each token, none negative; all arrays are broadcast against each other.

        Args:
            rows: tokens.
            kept: whether a token chooses what it chose before.
            sums: of what it chooses.
            total: sum of all scores that are left; 1 where it does not matter.
            places: gives what is chosen at some entries of the result, (s, N).
        """
        rho, own = self.factor(sums.mass, total), self._own_S[rows]
        found: Array = own - 2.0 * rho * sums.cross + rho**2 * sums.square
        if self._target:
            return np.maximum(found, 0.0)
        # What chooses the same has the same weights, but for their common factor.
        same = (self._rho_S[rows] - rho) ** 2 * sums.square if self.mass_matters else 0.0
        small = np.nonzero((found < CANCELLED * own) & ~kept)
        if len(small[0]):
            rows_s: Indices = np.broadcast_to(rows, found.shape)[small]
            rho_s: Array = np.broadcast_to(rho, found.shape)[small]
            for start in range(0, len(rows_s), PAIRS_PIECE):
                part = slice(start, start + PAIRS_PIECE)
                at = tuple(axis[part] for axis in small)
                found[at] = self._differences(rows_s[part], places(at), rho_s[part])
        found = np.maximum(np.where(kept, same, found), 0.0)
        return found

    def _differences(self, rows_s: Indices, places_sN: Indices, rho_s: Array) -> Array:
        """Return d^T K d, with d the weights before less the weights after: exact where changes cancel.

        Args:
            rows_s: tokens.
            places_sN: what each chooses.
            rho_s: factor of their scores.
        """
        before = self._before_SK.shape[1]
        there_sN = places_sN < self.places
        at_sN = np.minimum(places_sN, self.places - 1)
        weights_sN = self._scores_SP[rows_s[:, None], at_sN] * there_sN * rho_s[:, None]
        change = np.zeros((len(rows_s), before + at_sN.shape[1]))
        change[:, :before] = self._before_SK[rows_s]
        same_sN = at_sN < before
        change[:, before:] = np.where(same_sN, 0.0, -weights_sN)
        row, nth = np.nonzero(same_sN & there_sN)
        change[row, at_sN[row, nth]] -= weights_sN[row, nth]
        at = np.concatenate([np.broadcast_to(np.arange(before), (len(rows_s), before)), at_sN], axis=1)
        inner = self._gram_SPP[rows_s[:, None, None], at[:, :, None], at[:, None, :]]
        return np.asarray((np.matmul(inner, change[:, :, None])[:, :, 0] * change).sum(axis=1))
