"""A Gaussian process over levels, which tells the moves apart that are worth a measurement.

Letters: N trials, M moves, A axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ndtr

from sweeps.space.levels import Reals

MOST = 256
"""Trials that the process remembers, the best ones; its cost grows with their cube."""
_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
_NOISE = 1e-4
"""Variance of what the kernel cannot tell, beside one of the values; measurements have no noise of their own."""


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A process that has seen trials: mean zero, variance one, k(x, y) = exp(-|x - y|^2 / (2 s^2 A)) on levels in [0, 1].

    Args:
        points_NA: levels as shares of the largest.
        weights_N: K^-1 y.
        factor_NN: lower Cholesky factor of K.
        scale: s, the one of a few with the largest likelihood.
        best: smallest value seen, standardised.
    """

    points_NA: Reals
    weights_N: Reals
    factor_NN: Reals
    scale: float
    best: float

    def improvement(self, points_MA: Reals) -> Reals:
        """Return the logarithm of the expected improvement of moves over the best trial, in standard deviations, (M,)."""
        cross_MN = _kernel(points_MA, self.points_NA, self.scale)
        mean_M = cross_MN @ self.weights_N
        half_NM = solve_triangular(self.factor_NN, cross_MN.T, lower=True)
        deviation_M = np.sqrt(np.maximum(1.0 + _NOISE - (half_NM**2).sum(axis=0), 1e-12))
        gain_M = (self.best - mean_M) / deviation_M
        density_M = np.exp(-0.5 * gain_M**2) / math.sqrt(2 * math.pi)
        # Where no improvement is expected, moves are told apart by how far they are from one.
        expected_M = np.maximum(gain_M * ndtr(gain_M) + density_M, 1e-300)
        result: Reals = np.log(deviation_M) + np.where(gain_M > -30, np.log(expected_M), -0.5 * gain_M**2)
        return result


def fitted(points_NA: Reals, values_N: Reals) -> Surrogate:
    """Return the process of these trials.

    Args:
        points_NA: levels as shares of the largest.
        values_N: less is better; their ranks count where they are far apart, since damages grow without bound.
    """
    order = np.argsort(values_N, kind="stable")[:MOST]
    points_NA = points_NA[order]
    targets_N = _standardised(values_N[order])
    found: Surrogate | None = None
    likelihood = -np.inf
    for scale in _SCALES:
        kernel_NN = _kernel(points_NA, points_NA, scale) + _NOISE * np.eye(len(points_NA))
        factor_NN, lower = cho_factor(kernel_NN, lower=True)
        weights_N = cho_solve((factor_NN, lower), targets_N)
        here = -0.5 * targets_N @ weights_N - np.log(np.diag(factor_NN)).sum()
        if here > likelihood:
            likelihood = here
            found = Surrogate(points_NA, weights_N, np.tril(factor_NN), scale, float(targets_N.min()))
    assert found is not None
    return found


def _standardised(values_N: Reals) -> Reals:
    """Return values with mean 0 and deviation 1, of logarithms of the distance from the best where they are skewed."""
    spread = float(np.median(values_N) - values_N.min()) or float(np.ptp(values_N)) or 1.0
    bent_N = np.log1p((values_N - values_N.min()) / spread)
    result: Reals = (bent_N - bent_N.mean()) / (bent_N.std() or 1.0)
    return result


def _kernel(a_NA: Reals, b_MA: Reals, scale: float) -> Reals:
    axes = a_NA.shape[1]
    squared_NM = (a_NA**2).sum(1)[:, None] + (b_MA**2).sum(1)[None] - 2 * a_NA @ b_MA.T
    result: Reals = np.exp(-np.maximum(squared_NM, 0.0) / (2 * (0.3 * scale) ** 2 * axes))
    return result
