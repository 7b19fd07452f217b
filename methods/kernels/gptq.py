"""GPTQ: a matrix in few bits, one input after another, with the weights of the inputs after it adjusted for each.

Shape letters: O outputs of the matrix, X its inputs, G groups of inputs, B inputs of a block.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.quadratic import mean_squares
from methods.kernels.quantisation import Quantised, codes, dequantised, grid, round_to_nearest, values
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
    symmetric: bool = True,
    act_order: bool = False,
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
        symmetric: whether all zero points are 0.
        act_order: whether inputs take turns by falling mean square, ties in their own order, instead of in their own order.
            Groups stay what they are, of successive inputs, and have the scales of the weights before any is adjusted.

    *Source*: arXiv 2210.17323, algorithm 1, with groups, blocks of 128 inputs and damping 0.01; ``act_order`` with static groups
    as in the authors' later code (--act-order --static-groups), which needs no order in the file.

    *Differs*: a row that rounding to the nearest serves better, by the same loss on the calibration tokens, keeps that. Weights
    of inputs that never occurred are rounded, where the official code sets them to zero. Errors are those of the values as they
    are stored, products rounded to the type of the scales. The scales of a group that begins inside a block come from weights
    that make up for the errors of the inputs before it; the official code takes them from the weights as they were when the
    block began, so that the two agree where a group is a whole block.
    """
    kept_OX = weight_OX if zero_OX is None else weight_OX.masked_fill(zero_OX, 0.0)
    nearest = round_to_nearest(kept_OX, bits, group, scale_dtype, symmetric)
    if gram_XX is None or not bool(gram_XX.diagonal().any()):
        return nearest
    order_X = gram_XX.diagonal().argsort(descending=True, stable=True) if act_order else None
    found = inverse_factor(gram_XX if order_X is None else gram_XX[order_X][:, order_X])
    if found is None:
        return nearest
    factor_XX, damping = found[0].to(weight_OX), found[1]
    if order_X is None:
        adjusted, damped_O = _adjusted(weight_OX, bits, group, factor_XX, scale_dtype, zero_OX, symmetric)
    else:
        adjusted, damped_O = _in_order(weight_OX, bits, nearest, factor_XX, zero_OX, order_X)
    # W - Q is the errors times U, so their squares add up to the loss with the damping in it.
    loss_O = damped_O - damping * _change(weight_OX, adjusted).square().sum(dim=1)
    better_O1 = (loss_O < mean_squares(_change(weight_OX, nearest), gram_XX.to(weight_OX))).unsqueeze(1)
    chosen = [
        None if ours is None or theirs is None else torch.where(better_O1, ours, theirs)
        for ours, theirs in zip(adjusted, nearest, strict=True)
    ]
    codes_OX, scale_OG, best_zero_OG = chosen
    assert codes_OX is not None and scale_OG is not None
    return Quantised(codes_OX, scale_OG, best_zero_OG)


def _change(weight_OX: Tensor, quantised: Quantised) -> Tensor:
    return weight_OX - dequantised(quantised, weight_OX.dtype)


def _in_order(
    weight_OX: Tensor, bits: int, nearest: Quantised, factor_XX: Tensor, zero_OX: Tensor | None, order_X: Tensor
) -> tuple[Quantised, Tensor]:
    """Return what the recursion gives with inputs in another order and the scales and zero points of ``nearest``.

    With it goes the sum of the squared errors of each output, [O].

    Args:
        weight_OX: the matrix.
        bits: of a code.
        nearest: tells scales and zero points.
        factor_XX: U of the inputs in their order, in the dtype of the matrix.
        zero_OX: weights that stay zero.
        order_X: the inputs, the first one first.
    """
    weight_XO = weight_OX.T[order_X]  # a copy
    zero_XO = None if zero_OX is None else zero_OX.T[order_X]
    inputs, groups = len(weight_XO), nearest.scale_OG.shape[1]
    scale_GO = nearest.scale_OG.T.contiguous()
    point_GO = (
        torch.zeros_like(scale_GO, dtype=torch.int8) if nearest.zero_OG is None else nearest.zero_OG.T.contiguous()
    )
    codes_XO = torch.empty_like(weight_XO, dtype=torch.int8)
    loss_O = torch.zeros_like(weight_XO[0])
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        factor_BB, block_BO = factor_XX[start:stop, start:stop], weight_XO[start:stop]
        error_BO = torch.empty_like(block_BO)
        for place, index in enumerate(order_X[start:stop].tolist()):
            here = index // (inputs // groups)
            code_O = codes(block_BO[place], scale_GO[here].to(block_BO.dtype), bits, point_GO[here])
            if zero_XO is not None:
                code_O = torch.where(zero_XO[start + place], point_GO[here], code_O)
            codes_XO[index] = code_O
            value_O = values(code_O, scale_GO[here], point_GO[here]).to(block_BO.dtype)
            error_BO[place] = (block_BO[place] - value_O) / factor_BB[place, place]
            block_BO[place + 1 :].addr_(factor_BB[place, place + 1 :], error_BO[place], alpha=-1.0)
        weight_XO[stop:].addmm_(factor_XX[start:stop, stop:].T, error_BO, alpha=-1.0)
        loss_O += error_BO.square().sum(dim=0)
    return Quantised(codes_XO.T.contiguous(), nearest.scale_OG, nearest.zero_OG), loss_O


def _adjusted(
    weight_OX: Tensor,
    bits: int,
    group: int,
    factor_XX: Tensor,
    scale_dtype: torch.dtype,
    zero_OX: Tensor | None,
    symmetric: bool,
) -> tuple[Quantised, Tensor]:
    """Return what the recursion over the inputs gives, and the sum of the squared errors of each output, [O].

    Args:
        weight_OX: the matrix.
        bits: of a code.
        group: inputs that share a scale.
        factor_XX: U in the dtype of the matrix.
        scale_dtype: type in which scales are stored.
        zero_OX: weights that stay zero.
        symmetric: whether all zero points are 0.
    """
    # Transposed, so that the weights of one input lie side by side.
    weight_XO = weight_OX.T.clone(memory_format=torch.contiguous_format)
    zero_XO = None if zero_OX is None else zero_OX.T.contiguous()
    inputs, dtype = len(weight_XO), weight_XO.dtype
    highest = 2 ** (bits - 1) - 1
    codes_XO = torch.empty_like(weight_XO, dtype=torch.int8)
    scale_GO = torch.empty_like(weight_XO[: inputs // group], dtype=scale_dtype)
    point_GO = None if symmetric else torch.empty_like(scale_GO, dtype=torch.int8)
    loss_O = torch.zeros_like(weight_XO[0])
    size = group * max(1, BLOCK // group)  # whole groups, so that a group begins with weights that are up to date
    for start in range(0, inputs, size):
        stop = min(start + size, inputs)
        factor_BB = factor_XX[start:stop, start:stop]
        block_BO = weight_XO[start:stop]
        error_BO, code_BO = torch.empty_like(block_BO), torch.empty_like(block_BO)
        # Views of single rows are made once: making them costs as much as what is computed on them.
        rows = zip(block_BO.unbind(), error_BO.unbind(), code_BO.unbind(), factor_BB.diagonal().unbind(), strict=True)
        for place, (row_O, error_O, code_O, factor) in enumerate(rows):
            index = start + place
            if index % group == 0:
                group_MO = block_BO[place : place + group]
                if zero_XO is not None:
                    group_MO = group_MO.masked_fill(zero_XO[index : index + group], 0.0)
                stored_O, point_O = grid(group_MO.T, bits, scale_dtype, symmetric)
                scale_GO[index // group] = stored_O
                if point_GO is not None and point_O is not None:
                    point_GO[index // group] = point_O
                scale_O = stored_O.to(dtype)
            # As ``codes`` and ``values`` do it, with codes in the type of the weights, which holds them exactly.
            torch.div(row_O, scale_O, out=code_O)
            if point_O is not None:
                code_O.add_(point_O)
            code_O.clamp_(-highest - 1, highest).round_()
            if zero_XO is not None:
                code_O.copy_(torch.where(zero_XO[index], 0.0 if point_O is None else point_O.to(dtype), code_O))
            torch.sub(row_O, values(code_O, stored_O, point_O), out=error_O).div_(factor)
            block_BO[place + 1 :].addr_(factor_BB[place, place + 1 :], error_O, alpha=-1.0)
        codes_XO[start:stop] = code_BO
        weight_XO[stop:].addmm_(factor_XX[start:stop, stop:].T, error_BO, alpha=-1.0)
        loss_O += error_BO.square().sum(dim=0)
    point_OG = None if point_GO is None else point_GO.T.contiguous()
    return Quantised(codes_XO.T.contiguous(), scale_GO.T.contiguous(), point_OG), loss_O
