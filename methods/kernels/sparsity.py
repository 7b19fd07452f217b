"""Zeroing weights of one matrix: by magnitude, by magnitude times input norm, or with the other weights adjusted.

Shape letters: O outputs of the matrix, X its inputs, G groups of inputs, M inputs of a group, B inputs of a block.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from methods.framework.inside import Sparsity

BLOCK = 128
"""Inputs whose mask SparseGPT chooses at once."""
DAMPINGS = (0.01, 0.1, 1.0)
"""Shares of the mean square of the inputs that are added to the diagonal of their Gram matrix, until it can be factorised."""


class InputMoments(NamedTuple):
    """Second moments of the inputs of a matrix, on any scale; all zero (no tokens) means unknown.

    Args:
        square_X: mean squares; the diagonal of ``gram_XX`` where None.
        gram_XX: mean products, symmetric; only ``sparsegpt`` reads them.
    """

    square_X: Tensor | None = None
    gram_XX: Tensor | None = None


def sparsified(weight_OX: Tensor, sparsity: Sparsity, inputs: InputMoments | None) -> Tensor:
    """Return the matrix with zeros where ``sparsity`` puts them, as many in each row as its pattern says.

    ``unstructured`` zeroes floor(X share) weights of each row, an n:m pattern n of every m successive inputs; weights that
    were zero before are among them. Scores are |w| for ``magnitude``, |w_ij| sqrt(square_j) for ``wanda`` and ``moe_pruner``
    (whose squares are weighted by the gate), compared within a row or group; ties go to the lower input. What stays keeps
    its value, except under ``sparsegpt``. Rows do not depend on each other, so matrices with the same inputs may be stacked.

    Args:
        weight_OX: float32 or float64.
        sparsity: share, pattern and kernel.
        inputs: moments of the inputs; where unknown every kernel becomes ``magnitude``.

    Raises:
        ValueError: ``inputs`` lacks what the kernel reads; a defect of the caller.

    *Source*: Wanda, arXiv 2306.11695, equation 1; MoE-Pruner, arXiv 2410.12013, section 3; SparseGPT, arXiv 2301.00774,
    algorithm 1; all three inside experts: arXiv 2406.02500, "Expert Slimming".

    *Differs*: an expert without tokens, on which the official code of the holistic study fails, is pruned by magnitude.
    """
    if sparsity.kernel == "magnitude" or inputs is None:
        return _masked(weight_OX, weight_OX.abs(), sparsity)
    square_X = _squares(inputs)
    if not bool(square_X.any()):
        return _masked(weight_OX, weight_OX.abs(), sparsity)
    if sparsity.kernel == "sparsegpt":
        if inputs.gram_XX is None:
            raise ValueError("sparsegpt needs the Gram matrix of the inputs")
        found = inverse_factor(inputs.gram_XX)
        if found is not None:
            return _adjusted(weight_OX, sparsity, found[0].to(weight_OX), inputs.gram_XX.diagonal() <= 0)
    norm_X = square_X.double().clamp(min=0).sqrt().to(weight_OX)
    return _masked(weight_OX, weight_OX.abs() * norm_X, sparsity)


def inverse_factor(gram_XX: Tensor) -> tuple[Tensor, float] | None:
    """Return the upper triangular U with U^T U = (H + damping)^-1, in float64, and the damping; None where there is no factor.

    Row i of U holds, up to the factor U_ii, how the inputs after i make up for a change of weight i, and 1/U_ii^2 is what
    remains of the square of input i then. The inverse itself is never formed: if R R^T = H with R upper triangular (a
    Cholesky factor in reversed order), then U = R^-1.

    *Differs*: the damping is a share of the mean over inputs that occur, and grows tenfold until the factorisation
    succeeds; inputs that never occur get the damping alone, not a square of 1.
    """
    wide_XX = gram_XX.double()
    square_X = wide_XX.diagonal()
    mean = square_X.sum() / (square_X > 0).sum().clamp(min=1)
    for damping in DAMPINGS:
        reversed_XX = wide_XX.flip(0, 1)  # a copy
        reversed_XX.diagonal().add_(damping * mean)
        lower_XX, failed = torch.linalg.cholesky_ex(reversed_XX)
        if not bool(failed):
            return _inverse(lower_XX).flip(0, 1), damping * float(mean)
    return None


def _inverse(lower_XX: Tensor) -> Tensor:
    """Return the inverse of a lower triangular matrix; by halves, which leaves out the products with zeros."""
    inputs = len(lower_XX)
    if inputs <= BLOCK:
        unit_XX = torch.eye(inputs, dtype=lower_XX.dtype, device=lower_XX.device)
        small_XX: Tensor = torch.linalg.solve_triangular(lower_XX, unit_XX, upper=False)
        return small_XX
    half = inputs // 2
    first_YY, last_ZZ = lower_XX[:half, :half], lower_XX[half:, half:]
    inverse_XX = torch.zeros_like(lower_XX)
    inverse_XX[:half, :half], inverse_XX[half:, half:] = _inverse(first_YY), _inverse(last_ZZ)
    below_ZY = torch.linalg.solve_triangular(last_ZZ, lower_XX[half:, :half], upper=False)
    inverse_XX[half:, :half] = torch.linalg.solve_triangular(first_YY, below_ZY, upper=False, left=False).neg_()
    return inverse_XX


def _squares(inputs: InputMoments) -> Tensor:
    if inputs.square_X is not None:
        return inputs.square_X
    if inputs.gram_XX is None:
        raise ValueError("the moments of the inputs hold neither squares nor a Gram matrix")
    return inputs.gram_XX.diagonal()


def _masked(weight_OX: Tensor, score_OX: Tensor, sparsity: Sparsity) -> Tensor:
    if sparsity.pattern == "unstructured":
        zero_OX = _smallest(score_OX, int(score_OX.shape[1] * sparsity.share))
    else:
        zeros, size = _group(sparsity)
        score_OGM = score_OX.unflatten(1, (-1, size))
        zero_OX = _smallest_of_few(score_OGM, zeros).flatten(1)
    return weight_OX.masked_fill(zero_OX, 0.0)


def _group(sparsity: Sparsity) -> tuple[int, int]:
    """Return the zeros and the size of a group of an n:m pattern."""
    zeros, _, size = sparsity.pattern.partition(":")
    return int(zeros), int(size)


def _smallest(score_OX: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` smallest scores of each row; ties go to the lower index."""
    if count == 0:
        return torch.zeros_like(score_OX, dtype=torch.bool)
    if score_OX.device.type == "cpu":  # numpy selects several times faster, and a threshold does not depend on how
        limit_O1 = torch.from_numpy(np.partition(score_OX.numpy(), count - 1, axis=1)[:, count - 1 : count].copy())
    else:
        limit_O1 = score_OX.kthvalue(count, dim=1, keepdim=True).values
    below_OX, tie_OX = score_OX < limit_O1, score_OX == limit_O1
    missing_O1 = count - below_OX.sum(dim=1, keepdim=True)
    return below_OX | (tie_OX & (tie_OX.cumsum(dim=1, dtype=torch.int32) <= missing_O1))


def _smallest_of_few(score: Tensor, count: int) -> Tensor:
    """Return a mask of the ``count`` smallest scores along the last, short axis; ties go to the lower index."""
    rank = torch.zeros_like(score, dtype=torch.uint8)
    for place in range(score.shape[-1]):
        other = score[..., place : place + 1]
        rank[..., : place + 1] += other < score[..., : place + 1]
        rank[..., place + 1 :] += other <= score[..., place + 1 :]
    return rank < count


def _adjusted(weight_OX: Tensor, sparsity: Sparsity, factor_XX: Tensor, absent_X: Tensor) -> Tensor:
    """Return the matrix with weights zeroed one input after another, and the later ones adjusted for each.

    Args:
        weight_OX: the matrix.
        sparsity: share and pattern.
        factor_XX: see ``inverse_factor``, in the dtype of the matrix.
        absent_X: inputs that are always zero; their weights go first, the smallest before the others.

    *Differs*: unstructured masks take their share of each row of a block (so that the numbers of all blocks add up to the row's
    floor(X share)) instead of a quantile over all rows of the block.
    """
    # Transposed, so that the weights of one input lie side by side.
    weight_XO = weight_OX.T.clone(memory_format=torch.contiguous_format)
    inputs = weight_XO.shape[0]
    count = int(inputs * sparsity.share)
    remaining_X1 = factor_XX.diagonal().unsqueeze(1).square()
    for start in range(0, inputs, BLOCK):
        stop = min(start + BLOCK, inputs)
        block, size = slice(start, stop), stop - start
        block_BO, factor_BB, absent_B1 = weight_XO[block], factor_XX[block, block], absent_X[block].unsqueeze(1)
        step = size
        quota = count * stop // inputs - count * start // inputs
        if sparsity.pattern != "unstructured":
            quota, step = _group(sparsity)
        error_BO = torch.empty_like(block_BO)
        for first in range(0, size, step):
            part = slice(first, first + step)
            change_PO = block_BO[part].square() / remaining_X1[block][part]
            score_PO = torch.where(absent_B1[part], -1.0 / block_BO[part].abs(), change_PO)
            zero_PO = _smallest(score_PO.T.contiguous(), quota).T.contiguous()
            for place in range(first, first + step):
                zero_O = zero_PO[place - first]
                error_BO[place] = block_BO[place] * zero_O / factor_BB[place, place]
                block_BO[place].masked_fill_(zero_O, 0.0)
                block_BO[place + 1 :].addr_(factor_BB[place, place + 1 :], error_BO[place], alpha=-1.0)
        weight_XO[stop:].addmm_(factor_XX[block, stop:].T, error_BO, alpha=-1.0)
    return weight_XO.T.contiguous()
