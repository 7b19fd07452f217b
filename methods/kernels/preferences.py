"""Tokens whose experts have one order of preference, and the squared change of their output for any set that is chosen.

Where r experts go, a token chooses the first k of its order that are left, so only its first k + r *places* matter. For one
token let t be the output before, y the sum of the chosen outputs times their scores and rho the factor that makes scores
weights: the squared change is |t - rho y|^2 = |t|^2 - 2 rho t.y + rho^2 |y|^2, all from inner products of experts' outputs,
which are kept times the scores of both.

Shape letters: S sampled tokens, s some of them (one may come twice), E routed experts, C candidates, P places, N places that are
looked at, X experts and maybe the target, W places whose inner products are kept.
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
WITHIN = 2.5
"""Inner products are kept up to this many times the place that a token's last choice is expected at. Those beyond, which few
tokens ever choose, are read from the statistic: half of 128 experts take 52 MB for 4,096 tokens instead of 170."""


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
        expected = top_k * (experts + 1) / max(1, experts - most_removed + 1)
        self._kept = min(self.places, int(WITHIN * expected) + 1)
        self._gram_SXX = gram_SXX
        chosen = min(top_k, experts)
        self._inner_SWW, self._own_SP, before_SP = self._by_preference(gram_SXX, chosen)
        rho_S = self.factor(self._scores_SP[:, :chosen].sum(axis=1), self.total_mass(np.ones(experts, dtype=bool)))
        self._rho_S, self._before = rho_S, chosen
        if target:
            own_S, cross_SE = gram_SXX[:, -1, -1], gram_SXX[:, -1, :-1]
            self._own_S = np.asarray(own_S, dtype=np.float64)
            cross_SP = np.take_along_axis(np.asarray(cross_SE, dtype=np.float64), self.order_SP, axis=1)
            self._cross_SP = cross_SP * self._scores_SP
        else:
            self._cross_SP = before_SP * rho_S[:, None]
            self._own_S = self._cross_SP[:, :chosen].sum(axis=1) * rho_S

    def _by_preference(self, gram_SXX: Array, chosen: int) -> tuple[Array, Array, Array]:
        """Return score-weighted inner products of each token's experts in its order of preference.

        Args:
            gram_SXX: as for the constructor.
            chosen: experts that a token chooses when all are there.

        Returns:
            Those of the first places, (S, W, W); of each with itself, (S, P); of each with what is chosen, summed, (S, P).
        """
        tokens, size = gram_SXX.shape[:2]
        inner_SWW = np.empty((tokens, self._kept, self._kept))
        own_SP, before_SP = np.empty((tokens, self.places)), np.empty((tokens, self.places))
        step = max(1, GRAM_PIECE // size**2)
        for start in range(0, tokens, step):
            part = slice(start, start + step)
            flat = np.ascontiguousarray(gram_SXX[part]).reshape(-1)
            order_sP, scores_sP = self.order_SP[part], self._scores_SP[part]
            row_sP = (np.arange(len(order_sP))[:, None] * size + order_sP) * size
            order_sW, scores_sW = order_sP[:, : self._kept], scores_sP[:, : self._kept]
            inner_sWW = flat.take(row_sP[:, : self._kept, None] + order_sW[:, None, :])
            np.multiply(inner_sWW, scores_sW[:, :, None] * scores_sW[:, None, :], out=inner_SWW[part])
            np.multiply(flat.take(row_sP + order_sP), scores_sP * scores_sP, out=own_SP[part])
            before_sPK = flat.take(row_sP[:, :, None] + order_sP[:, None, :chosen])
            before_SP[part] = (before_sPK * (scores_sP[:, :, None] * scores_sP[:, None, :chosen])).sum(axis=2)
        return inner_SWW, own_SP, before_SP

    def _inner(self, rows: Indices, first: Indices, second: Indices) -> Array:
        """Return score-weighted inner products; all arguments are broadcast against each other.

        Args:
            rows: tokens.
            first: places of one expert, each below P.
            second: places of the other.
        """
        last = self._kept - 1
        near = (rows * self._kept + np.minimum(first, last)) * self._kept + np.minimum(second, last)
        found: Array = self._inner_SWW.reshape(-1).take(near)
        far = np.nonzero((first > last) | (second > last))
        if len(far[0]):
            row, one, two = (np.broadcast_to(each, found.shape)[far] for each in (rows, first, second))
            products = self._gram_SXX[row, self.order_SP[row, one], self.order_SP[row, two]]
            found[far] = products * (self._scores_SP[row, one] * self._scores_SP[row, two])
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
        cross_sN = self._cross_SP.ravel()[flat_sN] * there_sN
        inner_sNN = self._inner(rows_s[:, None, None], at_sN[:, :, None], at_sN[:, None, :])
        return scores_sN, cross_sN, inner_sNN * (there_sN[:, :, None] & there_sN[:, None, :])

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
        whole, near = bool(there_Ns[-1].all()), bool(at_Ns[-1].max(initial=0) < self._kept)
        inner, first_Ns = self._inner_SWW.reshape(-1), (rows_s * self._kept + at_Ns) * self._kept

        def summed(values_SP: Array) -> Array:
            taken_Ns = values_SP.ravel().take(flat_Ns)
            return np.asarray((taken_Ns if whole else taken_Ns * there_Ns).sum(axis=0))

        half_s = np.zeros(len(rows_s))  # one half of each symmetric matrix
        for nth in range(1, len(at_Ns)):
            if near:
                inner_s = inner.take(first_Ns[nth] + at_Ns[:nth]).sum(axis=0)
            else:
                inner_s = self._inner(rows_s, at_Ns[nth], at_Ns[:nth]).sum(axis=0)
            half_s += inner_s if whole else inner_s * there_Ns[nth]
        return Sums(summed(self._scores_SP), summed(self._cross_SP), 2.0 * half_s + summed(self._own_SP))

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
        """Return d^T K d, with d the factors before less the factors after, 0 where not chosen: exact where changes cancel.

        Args:
            rows_s: tokens.
            places_sN: what each chooses.
            rho_s: factor of their scores.
        """
        before, there_sN = self._before, places_sN < self.places
        at_sN = np.minimum(places_sN, self.places - 1)
        weights_sN = there_sN * rho_s[:, None]
        change = np.zeros((len(rows_s), before + at_sN.shape[1]))
        change[:, :before] = self._rho_S[rows_s, None]
        same_sN = at_sN < before
        change[:, before:] = np.where(same_sN, 0.0, -weights_sN)
        row, nth = np.nonzero(same_sN & there_sN)
        change[row, at_sN[row, nth]] -= weights_sN[row, nth]
        at = np.concatenate([np.broadcast_to(np.arange(before), (len(rows_s), before)), at_sN], axis=1)
        inner = self._inner(rows_s[:, None, None], at[:, :, None], at[:, None, :])
        return np.asarray((np.matmul(inner, change[:, :, None])[:, :, 0] * change).sum(axis=1))
