"""A Gaussian process over levels, which tells the moves apart that are worth a measurement.

Letters: N trials, M moves, A axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cho_factor, cho_solve, solve_triangular
from scipy.special import ndtr

from sweeps.samplers.moves import MANY
from sweeps.space.levels import LevelSpace, Reals

MOST = 256
"""Trials that the process remembers, the best ones; its cost grows with their cube."""
_SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
_NOISE = 1e-4
"""Variance of what the kernel cannot tell, beside one of the values; measurements have no noise of their own."""
_SMOOTH_SCALES = (0.2, 0.4, 0.8)
_SMOOTH_NOISE = 1e-2
"""The same in many layers, where few trials tell little of each."""
_WIDTH = 0.1
"""Share of the depth over which a profile is smoothed."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """How alike two points are: k(x, y) = exp(-|x - y|^2 / (2 s^2 A)), of many layers half of it of smoothed profiles.

    Args:
        scale: s, in multiples of 0.3.
        smooth: the same for smoothed profiles.
        across_AA: what smooths; None: points are compared as they are alone.
    """

    scale: float
    smooth: float = 1.0
    across_AA: Reals | None = None

    def __call__(self, a_NA: Reals, b_MA: Reals) -> Reals:
        """Return k of each of one set with each of another, (N, M)."""
        own_NM = _gaussian(a_NA, b_MA, self.scale)
        if self.across_AA is None:
            return own_NM
        result: Reals = 0.5 * own_NM + 0.5 * _gaussian(a_NA @ self.across_AA.T, b_MA @ self.across_AA.T, self.smooth)
        return result

    @property
    def noise(self) -> float:
        """Variance of what it cannot tell."""
        return _NOISE if self.across_AA is None else _SMOOTH_NOISE


def smoothing(space: LevelSpace) -> Reals | None:
    """Return what smooths levels over the depth, those of each knob and matrix by themselves, (A, A); None for few layers."""
    if len(space.units) < MANY:
        return None
    names = [axis.name.partition(".layer.") for axis in space.axes]
    knobs = [(knob, place.partition(".")[2]) for knob, _, place in names]
    layers_A = np.array([int(place.partition(".")[0]) for _, _, place in names], dtype=np.float64)
    depth_A = layers_A / max(1.0, layers_A.max())
    same_AA = np.array([[one == other for other in knobs] for one in knobs])
    near_AA = same_AA * np.exp(-((depth_A[:, None] - depth_A[None]) ** 2) / (2 * _WIDTH**2))
    result: Reals = near_AA / near_AA.sum(axis=1, keepdims=True)
    return result


@dataclass(frozen=True, slots=True)
class Surrogate:
    """A process that has seen trials: mean zero, variance one, on levels in [0, 1].

    Args:
        points_NA: levels as shares of the largest.
        weights_N: K^-1 y.
        factor_NN: lower Cholesky factor of K.
        kernel: the one of a few with the largest likelihood.
        best: smallest value seen, standardised.
    """

    points_NA: Reals
    weights_N: Reals
    factor_NN: Reals
    kernel: Kernel
    best: float

    def improvement(self, points_MA: Reals) -> Reals:
        """Return the logarithm of the expected improvement of moves over the best trial, in standard deviations, (M,)."""
        cross_MN = self.kernel(points_MA, self.points_NA)
        mean_M = cross_MN @ self.weights_N
        half_NM = solve_triangular(self.factor_NN, cross_MN.T, lower=True)
        deviation_M = np.sqrt(np.maximum(1.0 + self.kernel.noise - (half_NM**2).sum(axis=0), 1e-12))
        gain_M = (self.best - mean_M) / deviation_M
        density_M = np.exp(-0.5 * gain_M**2) / math.sqrt(2 * math.pi)
        # Where no improvement is expected, moves are told apart by how far they are from one.
        expected_M = np.maximum(gain_M * ndtr(gain_M) + density_M, 1e-300)
        result: Reals = np.log(deviation_M) + np.where(gain_M > -30, np.log(expected_M), -0.5 * gain_M**2)
        return result


def fitted(points_NA: Reals, values_N: Reals, across_AA: Reals | None = None) -> Surrogate:
    """Return the process of these trials.

    Args:
        points_NA: levels as shares of the largest.
        values_N: less is better; their ranks count where they are far apart, since damages grow without bound.
        across_AA: what smooths profiles over the depth; None: they are compared as they are alone.
    """
    order = np.argsort(values_N, kind="stable")[:MOST]
    points_NA = points_NA[order]
    targets_N = _standardised(values_N[order])
    found: Surrogate | None = None
    likelihood = -np.inf
    smooth = (1.0,) if across_AA is None else _SMOOTH_SCALES
    for kernel in (Kernel(scale, one, across_AA) for scale in _SCALES for one in smooth):
        kernel_NN = kernel(points_NA, points_NA) + kernel.noise * np.eye(len(points_NA))
        factor_NN, lower = cho_factor(kernel_NN, lower=True)
        weights_N = cho_solve((factor_NN, lower), targets_N)
        here = -0.5 * targets_N @ weights_N - np.log(np.diag(factor_NN)).sum()
        if here > likelihood:
            likelihood = here
            found = Surrogate(points_NA, weights_N, np.tril(factor_NN), kernel, float(targets_N.min()))
    assert found is not None
    return found


def _standardised(values_N: Reals) -> Reals:
    """Return values with mean 0 and deviation 1, of logarithms of the distance from the best where they are skewed."""
    spread = float(np.median(values_N) - values_N.min()) or float(np.ptp(values_N)) or 1.0
    bent_N = np.log1p((values_N - values_N.min()) / spread)
    result: Reals = (bent_N - bent_N.mean()) / (bent_N.std() or 1.0)
    return result


def _gaussian(a_NA: Reals, b_MA: Reals, scale: float) -> Reals:
    axes = a_NA.shape[1]
    squared_NM = (a_NA**2).sum(1)[:, None] + (b_MA**2).sum(1)[None] - 2 * a_NA @ b_MA.T
    result: Reals = np.exp(-np.maximum(squared_NM, 0.0) / (2 * (0.3 * scale) ** 2 * axes))
    return result
