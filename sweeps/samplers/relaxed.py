"""A relaxed choice on a budget: each unit chooses by softmax(alpha), and the expected size stays where it is.

Letters: O options of a unit. Lists run over units.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sweeps.space.levels import Reals

_HALVINGS = 80


def chances(alpha: Sequence[Reals]) -> list[Reals]:
    """Return softmax(alpha) of each unit."""
    powers = [np.exp(one - one.max()) for one in alpha]
    return [power / power.sum() for power in powers]


def expected(alpha: Sequence[Reals], sizes: Sequence[Reals]) -> float:
    """Return the expected size, sum_u E_p[c_u]."""
    return float(sum(p_O @ c_O for p_O, c_O in zip(chances(alpha), sizes, strict=True)))


def normal(alpha: Sequence[Reals], sizes: Sequence[Reals]) -> list[Reals]:
    """Return the gradient of the expected size with respect to alpha, p_k (c_k - E_p[c])."""
    pairs = zip(chances(alpha), sizes, strict=True)
    return [p_O * (c_O - p_O @ c_O) for p_O, c_O in pairs]


def tangent(vector: Sequence[Reals], alpha: Sequence[Reals], sizes: Sequence[Reals]) -> list[Reals]:
    """Return ``vector`` without its part along ``normal``: to first order it leaves the expected size as it is.

    Args:
        vector: of the shape of alpha.
        alpha: where.
        sizes: of every option.
    """
    across = normal(alpha, sizes)
    length = sum(float(one @ one) for one in across)
    along = sum(float(a @ b) for a, b in zip(vector, across, strict=True))
    factor = along / length if length > 0 else 0.0
    return [a - factor * b for a, b in zip(vector, across, strict=True)]


def retracted(alpha: Sequence[Reals], sizes: Sequence[Reals], budget: float) -> list[Reals]:
    """Return alpha + t c with the t at which the expected size is ``budget``; it grows with t, hence bisection.

    Args:
        alpha: anywhere.
        sizes: of every option.
        budget: between the sum of the smallest options and that of the largest.

    *Source*: arXiv 2605.00649 (RCO), projection, retraction and transport of the momentum, which is ``tangent`` at the new place.
    """
    scale = max(float(np.abs(one).max()) for one in sizes) or 1.0
    low, high = -1.0, 1.0
    while expected(_shifted(alpha, sizes, low / scale), sizes) > budget and low > -1e9:
        low *= 2
    while expected(_shifted(alpha, sizes, high / scale), sizes) < budget and high < 1e9:
        high *= 2
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        above = expected(_shifted(alpha, sizes, middle / scale), sizes) > budget
        low, high = (low, middle) if above else (middle, high)
    return [one - one.max() for one in _shifted(alpha, sizes, low / scale)]


def _shifted(alpha: Sequence[Reals], sizes: Sequence[Reals], factor: float) -> list[Reals]:
    return [a + factor * c for a, c in zip(alpha, sizes, strict=True)]


def through_softmax(slopes: Sequence[Reals], chosen: Sequence[Reals], temperature: float) -> list[Reals]:
    """Return dL/dalpha from dL/dp at p = softmax(alpha / temperature), p_k (d_k - sum_j p_j d_j) / temperature.

    Args:
        slopes: dL/dp.
        chosen: p.
        temperature: of the softmax.
    """
    return [p_O * (d_O - p_O @ d_O) / temperature for d_O, p_O in zip(slopes, chosen, strict=True)]
