"""One matrix as the product of two factors, so that its outputs change least on its inputs.

Shape letters: M outputs of the matrix, N its inputs, R rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

SMALLEST_DAMPING = 1e-12
"""Share of the mean square of the inputs that is first added to the diagonal of their second moment."""
_STRIP = 256
"""Columns of a triangular matrix that one product takes."""
GROWTH = 10.0
LARGEST_DAMPING = 1.0


class Factors(NamedTuple):
    """A matrix as ``left_MR @ right_RN``."""

    left_MR: Tensor
    right_RN: Tensor


def factored(
    weight_MN: Tensor,
    rank: int,
    gram_NN: Tensor | None = None,
    damping: float = SMALLEST_DAMPING,
    root_NN: Tensor | None = None,
) -> Factors:
    """Return the product of rank ``rank`` that is nearest to W: in its entries, or in its outputs where a moment is given.

    With S S^T = G + damping and W S = U diag(sigma) V^T, the product A B = U_R diag(sigma_R) V_R^T S^-1 makes the mean of
    |W x - A B x|^2 smallest, and it is the sum of sigma_i^2 over i > R. Since V^T S^-1 = diag(sigma)^-1 U^T W, this is
    A B = U_R U_R^T W: W projected on the directions of its largest outputs. So S is never inverted, and a damping that is far
    smaller than the squares of the inputs does no harm. It only decides about directions that no input has, in which the
    nearest entries count.

    Args:
        weight_MN: W, float32 or float64.
        rank: R, from 1 to min(M, N), where the product is W.
        gram_NN: G, mean of x x^T over the inputs x, on any scale; None or all zero (no tokens) means unknown, and entries count.
        damping: see ``root``.
        root_NN: S, where it is known; G is not looked at then.

    Returns:
        Both factors in the dtype of W, computed in float64.

    Raises:
        ValueError: ``rank`` out of range, or see ``root``; a defect of the caller.

    *Source*: truncated SVD, arXiv 2411.01016, section 3.3; with the moment of the inputs, SVD-LLM, arXiv 2403.07378, and
    D2-MoE, arXiv 2502.17298.

    *Differs*: the factors are the projection, not U sqrt(sigma) and sqrt(sigma) V^T S^-1. Their product is the same, but each
    direction is scaled so that its column of A and its row of B have the same norm, whatever the scale of the inputs.
    """
    if not 1 <= rank <= min(weight_MN.shape):
        raise ValueError(
            f"rank {rank} of a matrix of shape {tuple(weight_MN.shape)}; it can be 1 to {min(weight_MN.shape)}"
        )
    wide_MN = weight_MN.double()
    if root_NN is None and gram_NN is not None and bool(gram_NN.any()):
        root_NN = root(gram_NN, damping)
    left_MR = _largest_outputs(wide_MN if root_NN is None else _through(wide_MN, root_NN), rank)
    right_RN = left_MR.T @ wide_MN
    scale_R = torch.linalg.vector_norm(right_RN, dim=1).sqrt()
    right_RN = right_RN / torch.where(scale_R > 0, scale_R, 1.0).unsqueeze(1)
    return Factors((left_MR * scale_R).to(weight_MN.dtype), right_RN.to(weight_MN.dtype))


def spectrum(weight_MN: Tensor, gram_NN: Tensor | None = None, damping: float = SMALLEST_DAMPING) -> Tensor:
    """Return the singular values of W, or of W S where a moment of the inputs is given, descending, float64, min(M, N) of them.

    The squares of those after the first R add up to the error of ``factored`` at rank R: of the entries, or of the outputs in
    the mean over the inputs.

    Args:
        weight_MN: W.
        gram_NN: second moment of its inputs, of which S is a root; None for none.
        damping: see ``root``.
    """
    values_R: Tensor = torch.linalg.svdvals(_seen(weight_MN.double(), gram_NN, damping))
    return values_R


def root(gram_NN: Tensor, damping: float = SMALLEST_DAMPING) -> Tensor:
    """Return the lower triangular S with S S^T = G + damping, in float64.

    Args:
        gram_NN: G, symmetric.
        damping: share of the mean square of the inputs that occur that is added to the diagonal. Where G cannot be
            factorised with it (fewer tokens than inputs, or the rounding of float32 sums), it grows tenfold until it can, from
            ``SMALLEST_DAMPING`` if it was 0.

    Raises:
        ValueError: G cannot be factorised with a damping of 1 either, so it is no second moment.
    """
    wide_NN = gram_NN.double()
    square_N = wide_NN.diagonal()
    mean = square_N.sum() / (square_N > 0).sum().clamp(min=1)
    share = damping
    while share <= LARGEST_DAMPING:
        damped_NN = wide_NN.clone()
        damped_NN.diagonal().add_(share * mean)
        lower_NN, failed = torch.linalg.cholesky_ex(damped_NN)
        if not bool(failed):
            factor_NN: Tensor = lower_NN
            return factor_NN
        share = max(share * GROWTH, SMALLEST_DAMPING)
    raise ValueError(
        "the matrix cannot be factorised even with its mean square on the diagonal: it is no second moment"
    )


def base_columns(base_MN: Tensor, square_N: Tensor | None, count: int) -> Tensor:
    """Return the ``count`` columns with the largest |W[:, j]| sqrt(square_j), ascending, int64; ties go to the lower index.

    Args:
        base_MN: W.
        square_N: mean squares of the inputs; None or all zero (no tokens) means unknown, and the norm of the column counts.
        count: columns, from 1 to N.

    *Source*: arXiv 2502.17298, the metric C_j of the static part of its column pruning.
    """
    score_N = base_MN.double().square().sum(dim=0)
    if square_N is not None and bool(square_N.any()):
        score_N = score_N * square_N.double()
    columns_C: Tensor = score_N.argsort(descending=True, stable=True)[:count].sort().values
    return columns_C


def _seen(wide_MN: Tensor, gram_NN: Tensor | None, damping: float) -> Tensor:
    """Return W S, or W where nothing is known of the inputs."""
    if gram_NN is None or not bool(gram_NN.any()):
        return wide_MN
    return _through(wide_MN, root(gram_NN, damping))


def _through(wide_MN: Tensor, root_NN: Tensor) -> Tensor:
    """Return W S for a lower triangular S, without the products with the zeros above its diagonal."""
    strips = range(0, len(root_NN), _STRIP)
    return torch.cat([wide_MN[:, at:] @ root_NN[at:, at : at + _STRIP] for at in strips], dim=1)


def _largest_outputs(seen_MN: Tensor, rank: int) -> Tensor:
    """Return ``rank`` orthonormal columns that span the left singular vectors of the largest singular values, [M, R].

    They are eigenvectors of the smaller of the two Gram matrices. Its rounding moves singular values by some 1e-8 of the largest,
    far below that of the second moments that the matrix was multiplied by.
    """
    outputs, inputs = seen_MN.shape
    if outputs <= inputs:
        _, vectors_MM = torch.linalg.eigh(seen_MN @ seen_MN.T)
        largest_MR: Tensor = vectors_MM[:, -rank:].flip(1)
        return largest_MR
    _, vectors_NN = torch.linalg.eigh(seen_MN.T @ seen_MN)
    # The columns of this are orthogonal, but for rounding, which the factorisation removes.
    left_MR: Tensor = torch.linalg.qr(seen_MN @ vectors_NN[:, -rank:].flip(1)).Q
    return left_MR
