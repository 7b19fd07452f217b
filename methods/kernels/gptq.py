"""GPTQ: a matrix in few bits, one input after another, with the weights of the inputs after it adjusted for each.

Shape letters: O outputs of the matrix, X its inputs, G groups of inputs, B inputs of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.quantisation import Quantised, codes, dequantised, round_to_nearest, scales, values
from methods.kernels.sparsity import inverse_factor

BLOCK = 128
"""Inputs after which the changes are carried over to all inputs that follow; they are carried within a block at once."""


def gptq(
    weight_OX: Tensor,
    bits: int,
    group: int,
    gram_XX: Tensor | None,
    scale_dtype: torch.dtype,
    zero_OX: Tensor | None = None,
) -> Quantised:
    """Return the matrix in few bits, chosen so that tr((W - Q) H (W - Q)^T) is small.

    With U upper triangular and U^T U = (H + damping)^-1, input i in turn: q_i is w_i rounded, e = (w_i - q_i) / U_ii, and
    w_k -= e U_ik for every k > i. The scales of a group come from the weights as they are when its first input is reached.
    Rows do not depend on each other, so matrices with the same inputs may be stacked.

    Args:
        weight_OX: float32 or float64; left as it is.
        bits: of a code.
        group: inputs that share a scale; a divisor of X.
        gram_XX: H, mean products of the inputs, on any scale; None or zero (no tokens) gives ``round_to_nearest``.
        scale_dtype: type in which scales are stored.
        zero_OX: weights that stay zero; what that changes in the outputs is made up for like a rounding.

    *Source*: arXiv 2210.17323, algorithm 1, with groups, blocks of 128 inputs and damping 0.01; inputs in their own order.

    *Differs*: a row that rounding to the nearest serves better, by the same loss on the calibration tokens, keeps that. Weights
    of inputs that never occurred are rounded, where the official code sets them to zero. Errors are those of the values as they
    are stored, products rounded to the type of the scales. The scales of a group that begins inside a block come from weights
    that make up for the errors of the inputs before it; the official code takes them from the weights as they were when the
    block began, so that the two agree where a group is a whole block.
    """
    kept_OX = weight_OX if zero_OX is None else weight_OX.masked_fill(zero_OX, 0.0)
    nearest = round_to_nearest(kept_OX, bits, group, scale_dtype)
    if gram_XX is None or not bool(gram_XX.diagonal().any()):
        return nearest
    factor_XX = inverse_factor(gram_XX)
    if factor_XX is None:
        return nearest
    adjusted = _adjusted(weight_OX, bits, group, factor_XX.to(weight_OX), scale_dtype, zero_OX)
    gram_XX = gram_XX.to(weight_OX)
    better_O1 = (_loss(weight_OX, adjusted, gram_XX) < _loss(weight_OX, nearest, gram_XX)).unsqueeze(1)
    return Quantised(*(torch.where(better_O1, ours, theirs) for ours, theirs in zip(adjusted, nearest, strict=True)))


def _loss(weight_OX: Tensor, quantised: Quantised, gram_XX: Tensor) -> Tensor:
    """Return the mean squared change of each output, [O]."""
    change_OX = weight_OX - dequantised(quantised, weight_OX.dtype)
    return ((change_OX @ gram_XX) * change_OX).sum(dim=1)


def _adjusted(
    weight_OX: Tensor, bits: int, group: int, factor_XX: Tensor, scale_dtype: torch.dtype, zero_OX: Tensor | None
) -> Quantised:
    """Return what the recursion over the inputs gives; ``factor_XX`` is U in the dtype of the matrix."""
    # Transposed, so that the weights of one input lie side by side.
    weight_XO = weight_OX.T.clone(memory_format=torch.contiguous_format)
    zero_XO = None if zero_OX is None else zero_OX.T.contiguous()
    inputs, dtype = len(weight_XO), weight_XO.dtype
    codes_XO = torch.empty_like(weight_XO, dtype=torch.int8)
    scale_GO = torch.empty_like(weight_XO[: inputs // group], dtype=scale_dtype)
    size = group * max(1, BLOCK // group)  # whole groups, so that a group begins with weights that are up to date
    for start in range(0, inputs, size):
        stop = min(start + size, inputs)
        factor_BB = factor_XX[start:stop, start:stop]
        block_BO = weight_XO[start:stop]
        error_BO = torch.empty_like(block_BO)
        for place in range(stop - start):
            index = start + place
            if index % group == 0:
                group_MO = block_BO[place : place + group]
                if zero_XO is not None:
                    group_MO = group_MO.masked_fill(zero_XO[index : index + group], 0.0)
                stored_O = scale_GO[index // group] = scales(group_MO.abs().amax(dim=0), bits, scale_dtype)
                scale_O = stored_O.to(dtype)
            code_O = codes(block_BO[place], scale_O, bits)
            if zero_XO is not None:
                code_O.masked_fill_(zero_XO[index], 0)
            codes_XO[index] = code_O
            error_BO[place] = (block_BO[place] - values(code_O, stored_O).to(dtype)) / factor_BB[place, place]
            block_BO[place + 1 :].addr_(factor_BB[place, place + 1 :], error_BO[place], alpha=-1.0)
        weight_XO[stop:].addmm_(factor_XX[start:stop, stop:].T, error_BO, alpha=-1.0)
    return Quantised(codes_XO.T.contiguous(), scale_GO.T.contiguous())
