"""Weights as signed integers of few bits, with one scale for a group of successive inputs of a row.

Shape letters: O outputs of the matrix, X its inputs, G groups of inputs, M inputs of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Quantised(NamedTuple):
    """A matrix as integers: each weight is its code times the scale of its group.

    Args:
        codes_OX: int8, from -2^(bits - 1) to 2^(bits - 1) - 1.
        scale_OG: positive, in the type in which it is stored.
    """

    codes_OX: Tensor
    scale_OG: Tensor


def round_to_nearest(weight_OX: Tensor, bits: int, group: int, scale_dtype: torch.dtype) -> Quantised:
    """Return the matrix with every weight rounded to the nearest of its group's values.

    Args:
        weight_OX: float32 or float64, finite.
        bits: of a code, from 2 to 8.
        group: inputs that share a scale; a divisor of X.
        scale_dtype: type in which scales are stored; codes are those for the scales after rounding to it.

    Raises:
        ValueError: ``group`` does not divide X; a defect of the caller.
    """
    grouped_OGM = _grouped(weight_OX, group)
    scale_OG = scales(grouped_OGM.abs().amax(dim=2), bits, scale_dtype)
    codes_OGM = codes(grouped_OGM, scale_OG.unsqueeze(2).to(weight_OX.dtype), bits)
    return Quantised(codes_OGM.flatten(1), scale_OG)


def dequantised(quantised: Quantised, dtype: torch.dtype) -> Tensor:
    """Return the weights [O, X]: products in the type of the scales, as readers of the checkpoint form them, then ``dtype``."""
    codes_OX, scale_OG = quantised
    codes_OGM = _grouped(codes_OX, codes_OX.shape[1] // scale_OG.shape[1])
    return values(codes_OGM, scale_OG.unsqueeze(2)).flatten(1).to(dtype)


def scales(largest: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """Return the scale of each group, max |w| / ((2^bits - 1) / 2), rounded to ``dtype``; never 0.

    A weight of the largest magnitude lies half a step beyond the last positive code, or half a step before the first
    negative one, so no weight of a group is further than half a scale from a code, up to the rounding of the scale.

    Args:
        largest: max |w| of each group, of any shape.
        bits: of a code.
        dtype: type in which scales are stored.

    *Source*: the convention of the compressed-tensors format, and of GPTQ's symmetric grid, arXiv 2210.17323.

    *Differs*: AWQ's own code divides by 2^(bits - 1) - 1, which never uses the lowest code and makes steps 7 % wider at 4 bits.
    """
    # By a tensor, since a GPU multiplies by the reciprocal of a number, and the largest weight lies on the tie of two codes.
    rounded = (largest / torch.full_like(largest, (2**bits - 1) / 2)).to(dtype)
    # A group of zeros: any scale serves, and this one is what the library of the format writes.
    scale: Tensor = torch.where(rounded == 0, torch.finfo(dtype).eps, rounded)
    return scale


def codes(weight: Tensor, scale: Tensor, bits: int) -> Tensor:
    """Return the code nearest to each weight, int8; halves go to the even code, and what is out of range to its end.

    Args:
        weight: of any shape.
        scale: in the type of ``weight``, broadcast to its shape.
        bits: of a code.
    """
    highest = 2 ** (bits - 1) - 1
    return (weight / scale).clamp_(-highest - 1, highest).round_().to(torch.int8)


def values(code: Tensor, scale: Tensor) -> Tensor:
    """Return code times scale in the type of ``scale``, which holds every code exactly."""
    product: Tensor = code.to(scale.dtype) * scale
    return product


def _grouped(matrix_OX: Tensor, group: int) -> Tensor:
    if group < 1 or matrix_OX.shape[1] % group:
        raise ValueError(f"groups of {group} do not divide the {matrix_OX.shape[1]} inputs")
    grouped_OGM: Tensor = matrix_OX.unflatten(1, (-1, group))
    return grouped_OGM
