"""AWQ: inputs are scaled before their weights are rounded, and what gives the inputs undoes it.

Shape letters: O outputs of a matrix, X its inputs, A candidates, D hidden size, F expert width.

Two kinds of inputs are scaled. Those of gate and up are the output of the norm before the experts, so one scale s_D serves all
experts of the layer, the norm's weight is divided by it (``folded_norm``), and everything that reads the norm's output has
its columns multiplied by it: router, shared experts and their gate, and the experts, which are rounded
afterwards. Those of down are act(gate x) * (up x), linear in up, so each expert has a scale s_F of its own: rows of up are
divided by it, columns of down multiplied.

Both searches are on the matrices of the source, in any order: a row that is divided has its scales divided, so it is rounded as
before (up to the rounding of scales), and the two do not touch each other. In up, rows are divided first, then columns scaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.kernels.quadratic import mean_squares
from methods.kernels.quantisation import dequantised, round_to_nearest

ALPHAS = tuple(step / 20 for step in range(21))
"""Exponents that are tried; 0 is no scale at all."""
FLOOR = 1e-4
"""Least mean magnitude of an input that occurs, as a share of the largest."""
ROWS = 256
"""Rows of a matrix from which its loss is estimated, evenly spaced; a matrix with no more is taken whole."""


def input_scale(
    matrices: Sequence[Tensor],
    grams: Sequence[Tensor],
    magnitude_X: Tensor,
    bits: int,
    group: int,
    tokens: Sequence[float],
    scale_dtype: torch.dtype,
    symmetric: bool = True,
) -> Tensor:
    """Return the scale s_X [X], float32, of the inputs that all ``matrices`` share.

    For each exponent alpha, s = a^alpha / sqrt(max a^alpha min a^alpha); that one stays whose loss
    sum_j n_j tr(E_j G_j E_j^T) is least, with E_j = Q(W_j s) / s - W_j and Q the rounding to the nearest. Alpha = 0, which
    scales nothing, is among them, so the loss is never above that of rounding alone; ties go to the smaller exponent.

    Args:
        matrices: W_j [O, X], float32 or float64. They and ``grams`` may be read on access: each is read once, one expert at a
            time, and not at all for an expert without tokens.
        grams: G_j [X, X], mean products of the inputs over the tokens that reach W_j.
        magnitude_X: a, mean |x| of the inputs.
        bits: of a code.
        group: inputs that share a scale of Q; a divisor of X.
        tokens: n_j, tokens that reach each matrix; without any, nothing is scaled.
        scale_dtype: type in which scales of Q are stored.
        symmetric: whether Q has no zero points.

    *Source*: arXiv 2306.00978, equations 4 and 5, with the grid and the normalisation of the official code.

    *Differs*: the loss is that of each expert on the tokens routed to it, where the official code runs a whole block. Weights are
    not clipped. Inputs that never occur are not scaled, and the magnitude of the others is at least 1e-4 of the largest. A matrix
    of more than ``ROWS`` rows is judged by at least as many of them, evenly spaced, whose losses stand for all.
    """
    candidates_AX = _candidates(magnitude_X)
    losses = [0.0] * len(ALPHAS)
    for place, count in enumerate(tokens):
        if count <= 0:
            continue
        whole_OX = matrices[place]
        weight_OX = whole_OX[:: max(1, len(whole_OX) // ROWS)]
        factor = float(count) * len(whole_OX) / len(weight_OX)
        gram_XX = grams[place].to(weight_OX)
        for step, scale_X in enumerate(candidates_AX.to(weight_OX)):
            rounded = round_to_nearest(weight_OX * scale_X, bits, group, scale_dtype, symmetric)
            error_OX = dequantised(rounded, weight_OX.dtype) / scale_X - weight_OX
            losses[step] += factor * float(mean_squares(error_OX, gram_XX).sum(dtype=torch.float64))
    return candidates_AX[min(range(len(ALPHAS)), key=losses.__getitem__)]


def channel_scale(
    down_DF: Tensor,
    gram_FF: Tensor,
    magnitude_F: Tensor,
    bits: int,
    group: int,
    scale_dtype: torch.dtype,
    symmetric: bool = True,
) -> Tensor:
    """Return the scale s_F [F], float32, of the inputs of one expert's down; ones for an expert without tokens.

    Args:
        down_DF: the matrix.
        gram_FF: mean products of its inputs over the expert's tokens.
        magnitude_F: mean magnitudes of its inputs over the expert's tokens.
        bits: of a code.
        group: inputs that share a scale.
        scale_dtype: type in which scales are stored.
        symmetric: whether there are no zero points.

    *Source*: as ``input_scale``.
    """
    return input_scale([down_DF], [gram_FF], magnitude_F, bits, group, [1.0], scale_dtype, symmetric)


def folded_norm(norm_D: Tensor, scale_D: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norm's weight divided by the scale, and the scale that this is after rounding to the weight's type.

    The product of the two is the old weight (up to the rounding of float32, or float64 from it), so that columns multiplied by
    the second make up for the rounding of the first.
    """
    wide = _wide(norm_D.dtype)
    divided_D = (norm_D.to(wide) / scale_D.to(wide)).to(norm_D.dtype)
    exact_D = norm_D.to(wide) / divided_D.to(wide)
    return divided_D, torch.where(divided_D == 0, scale_D.to(wide), exact_D)


def _candidates(magnitude_X: Tensor) -> Tensor:
    """Return one scale for each exponent, float32; largest and smallest are inverse to each other."""
    wide_X = magnitude_X.double()
    occurs_X = wide_X > 0
    if not bool(occurs_X.any()):
        return torch.ones(len(ALPHAS), len(wide_X), device=wide_X.device)
    floored_X = wide_X.clamp(min=FLOOR * float(wide_X.max()))
    log_X = floored_X.log()
    middle = (log_X[occurs_X].max() + log_X[occurs_X].min()) / 2
    centred_X = torch.where(occurs_X, log_X - middle, 0.0)
    return torch.stack([(alpha * centred_X).exp() for alpha in ALPHAS]).float()


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32
