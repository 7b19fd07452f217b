"""The values that codes and scales of a quantised source stand for, as the definition of each format gives them.

Letters: M rows and N columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from bench.families.stored_formats import FP8
from methods.framework.inventory import TensorEntry


def dequantised(entry: TensorEntry, pieces: Sequence[Tensor]) -> Tensor:
    """Return the values of a matrix, (M, N), unrounded unless its format says in which type they are.

    Args:
        entry: the matrix, which is stored as codes.
        pieces: its tensors, in the order of ``entry.stored``.
    """
    assert entry.stored is not None and entry.stored.format == FP8
    codes_MN, scales = pieces
    return codes_MN.float() * spread(scales.float(), entry.stored.group, codes_MN.shape)


def spread(scales: Tensor, group: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """Return for each entry of a matrix of ``shape`` the scale of its block.

    Args:
        scales: one for each block; those at the lower and right edge may reach over it.
        group: rows and columns of a block.
        shape: M and N.
    """
    for axis in (0, 1):
        scales = scales.repeat_interleave(group[axis], dim=axis).narrow(axis, 0, shape[axis])
    return scales
