"""Weights as signed integers of few bits, with one scale, and maybe a zero point, for a group of successive inputs of a row.

Shape letters: O outputs of the matrix, X its inputs, G groups of inputs, M inputs of a group.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Quantised(NamedTuple):
    """A matrix as integers: each weight is its code, less the zero point of its group, times the scale of its group.

    Args:
        codes_OX: int8, from -2^(bits - 1) to 2^(bits - 1) - 1.
        scale_OG: positive, in the type in which it is stored.
        zero_OG: zero points, int8, in the range of the codes; None: all are 0.
    """

    codes_OX: Tensor
    scale_OG: Tensor
    zero_OG: Tensor | None = None

    def rows(self, where: slice) -> Quantised:
        """Return some of the rows."""
        zero_OG = None if self.zero_OG is None else self.zero_OG[where]
        return Quantised(self.codes_OX[where], self.scale_OG[where], zero_OG)


def round_to_nearest(
    weight_OX: Tensor, bits: int, group: int, scale_dtype: torch.dtype, symmetric: bool = True
) -> Quantised:
    """Return the matrix with every weight rounded to the nearest of its group's values.

    Args:
        weight_OX: float32 or float64, finite.
        bits: of a code, from 2 to 8.
        group: inputs that share a scale; a divisor of X.
        scale_dtype: type in which scales are stored; codes are those for the scales after rounding to it.
        symmetric: whether all zero points are 0.

    Raises:
        ValueError: ``group`` does not divide X; a defect of the caller.
    """
    grouped_OGM = _grouped(weight_OX, group)
    scale_OG, zero_OG = grid(grouped_OGM, bits, scale_dtype, symmetric)
    zero_OG1 = None if zero_OG is None else zero_OG.unsqueeze(2)
    codes_OGM = codes(grouped_OGM, scale_OG.unsqueeze(2).to(weight_OX.dtype), bits, zero_OG1)
    return Quantised(codes_OGM.flatten(1), scale_OG, zero_OG)


def grid(weight: Tensor, bits: int, dtype: torch.dtype, symmetric: bool) -> tuple[Tensor, Tensor | None]:
    """Return scale and zero point of each group, whose weights lie along the last axis.

    Symmetric ones have the scale of ``scales`` and no zero point. Others have the scale (h - l) / (2^bits - 1), rounded to
    ``dtype`` and never 0, h = max(w, 0) and l = min(w, 0), and the integer zero point nearest to -2^(bits - 1) - l / scale, so
    that a weight of 0 is stored exactly.

    Args:
        weight: of any shape.
        bits: of a code.
        dtype: type in which scales are stored.
        symmetric: whether there are no zero points.

    *Source*: the convention of the compressed-tensors format; AWQ, arXiv 2306.00978, and GPTQ's asymmetric grid are the same but
    for the rounding of scales.
    """
    if symmetric:
        return scales(weight.abs().amax(dim=-1), bits, dtype), None
    low, high = weight.amin(dim=-1).clamp(max=0), weight.amax(dim=-1).clamp(min=0)
    # By a tensor, as in ``scales``.
    rounded = ((high - low) / torch.full_like(low, 2**bits - 1)).to(dtype)
    scale = torch.where(rounded == 0, torch.finfo(dtype).eps, rounded)
    lowest = -(2 ** (bits - 1))
    zero = (lowest - low / scale.to(low.dtype)).round_().clamp_(lowest, -lowest - 1)
    return scale, zero.to(torch.int8)


def dequantised(quantised: Quantised, dtype: torch.dtype) -> Tensor:
    """Return the weights [O, X]: products in the type of the scales, as readers of the checkpoint form them, then ``dtype``."""
    codes_OX, scale_OG, zero_OG = quantised
    codes_OGM = _grouped(codes_OX, codes_OX.shape[1] // scale_OG.shape[1])
    zero_OG1 = None if zero_OG is None else zero_OG.unsqueeze(2)
    return values(codes_OGM, scale_OG.unsqueeze(2), zero_OG1).flatten(1).to(dtype)


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


def codes(weight: Tensor, scale: Tensor, bits: int, zero: Tensor | None = None) -> Tensor:
    """Return the code nearest to each weight, int8; halves go to the even code, and what is out of range to its end.

    Args:
        weight: of any shape.
        scale: in the type of ``weight``, broadcast to its shape.
        bits: of a code.
        zero: zero point, broadcast likewise; None: 0.
    """
    highest = 2 ** (bits - 1) - 1
    stepped = weight / scale if zero is None else weight / scale + zero
    return stepped.clamp_(-highest - 1, highest).round_().to(torch.int8)


def values(code: Tensor, scale: Tensor, zero: Tensor | None = None) -> Tensor:
    """Return (code - zero point) times scale in the type of ``scale``, which holds every such difference exactly.

    Args:
        code: of any shape.
        scale: broadcast to it.
        zero: zero point, broadcast likewise; None: 0.
    """
    steps = code.to(scale.dtype) if zero is None else code.to(scale.dtype) - zero.to(scale.dtype)
    product: Tensor = steps * scale
    return product


def _grouped(matrix_OX: Tensor, group: int) -> Tensor:
    if group < 1 or matrix_OX.shape[1] % group:
        raise ValueError(f"groups of {group} do not divide the {matrix_OX.shape[1]} inputs")
    grouped_OGM: Tensor = matrix_OX.unflatten(1, (-1, group))
    return grouped_OGM
