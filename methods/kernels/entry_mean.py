"""The mean of matrices with a weight of its own for every entry of each.

Shape letters: M rows of a matrix, N its columns.
"""

from __future__ import annotations

import torch
from torch import Tensor


class EntryMean:
    """sum_i F_i W_i / sum_i F_i, entry by entry; the plain mean of the W_i where no F_i is above 0.

    Matrices are added one after the other, so that the memory is that of three, in float64: squared gradients span more powers
    of ten than float32 has.

    *Source*: arXiv 2502.17298: merging of experts by Fisher information.
    """

    def __init__(self) -> None:
        """Begin without matrices."""
        self._count = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, weight_MN: Tensor, mass_MN: Tensor) -> None:
        """Add W, and F on any device, which is nowhere below 0."""
        wide_MN, mass_MN = weight_MN.double(), mass_MN.to(weight_MN.device).double()
        self._count += 1
        if self._sums is None:
            self._sums = (wide_MN * mass_MN, mass_MN, wide_MN.clone())
            return
        weighted_MN, total_MN, plain_MN = self._sums
        self._sums = (weighted_MN.addcmul_(wide_MN, mass_MN), total_MN + mass_MN, plain_MN.add_(wide_MN))

    def value(self) -> Tensor:
        """Return the mean of what was added, at least one matrix, in float64."""
        assert self._sums is not None
        weighted_MN, total_MN, plain_MN = self._sums
        known_MN = total_MN > 0
        mean_MN: Tensor = torch.where(
            known_MN, weighted_MN / torch.where(known_MN, total_MN, 1.0), plain_MN / self._count
        )
        return mean_MN
