"""One expert out of several: weighted sums of matrices, after aligning hidden channels or before a projection.

Shape letters: D hidden size, F expert width, M rows of a matrix, N its columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from methods.framework.layer_plan import Merge
from methods.framework.transfer import AveragedRows


class ExpertMatrices(NamedTuple):
    """The three matrices of a routed expert, which computes down(act(gate x) * up x)."""

    gate_FD: Tensor
    up_FD: Tensor
    down_DF: Tensor


def merged(merge: Merge, members: Sequence[ExpertMatrices]) -> ExpertMatrices:
    """Return the expert that ``merge`` makes of ``members``.

    With weights w and matrices W, ``mean`` gives sum_i w_i W_i; ``aligned`` the same after ``align`` to the member
    ``merge.into``; ``svd`` gives U_r U_r^T sum_i w_i W_i for each of the three matrices, where U_r holds the r leading
    left singular vectors of [W_1 ... W_n].

    Args:
        merge: weights and kernel.
        members: matrices of ``merge.members``, in that order, of any floating dtype. One is taken at a time (and that of
            ``merge.into`` first where it is the reference), so a sequence that reads on access needs the memory of one.

    Returns:
        Matrices in float32, or in float64 where those of the members are.

    *Source*: alignment by assignment on products of weights, "Git Re-Basin", arXiv 2209.04836, section 3.2, used for
    experts by M-SMoE, arXiv 2310.01334; the joint decomposition is that of Sub-MoE, arXiv 2506.23266.

    *Differs*: Sub-MoE states U_r S_r sum_i w_i V_i^T with [V_1^T ... V_n^T] the right factor split by member. Since
    S_r V_i^T = U_r^T W_i, this is the projection above, for which V need not be computed nor split.
    """
    dtype = torch.float64 if members[0].gate_FD.dtype == torch.float64 else torch.float32
    reference = _wide(members[merge.members.index(merge.into)], dtype) if merge.kernel == "aligned" else None
    sums: list[Tensor] = []
    grams: list[Tensor] = []
    for place, (member, weight) in enumerate(zip(merge.members, merge.weights, strict=True)):
        if weight == 0.0 and merge.kernel != "svd":
            continue  # so that a single weight of 1 gives that member bit for bit
        expert = _wide(members[place], dtype)
        if reference is not None and member != merge.into:
            expert = permuted(expert, align(reference, expert))
        if merge.kernel == "svd":
            _accumulate(grams, [_gram(matrix) for matrix in expert], 1.0)
        _accumulate(sums, expert, weight)
    if merge.rank is not None:
        columns = [matrix.shape[1] * len(members) for matrix in sums]
        sums = [_projected(*parts, merge.rank) for parts in zip(sums, grams, columns, strict=True)]
    return ExpertMatrices(*sums)


def merged_bias(merge: Merge, members: Sequence[ExpertMatrices], biases: Sequence[Tensor], of_channels: bool) -> Tensor:
    """Return the bias of the expert that ``merge`` makes: the weighted sum, its channels in the order of ``merged``.

    Args:
        merge: weights and kernel.
        members: matrices of ``merge.members``; read only where channels are aligned.
        biases: theirs, in that order.
        of_channels: whether the bias has an entry for each channel.
    """
    dtype = torch.float64 if biases[0].dtype == torch.float64 else torch.float32
    total = torch.zeros_like(biases[0], dtype=dtype)
    aligned = of_channels and merge.kernel == "aligned"
    reference = _wide(members[merge.members.index(merge.into)], dtype) if aligned else None
    for place, (member, weight) in enumerate(zip(merge.members, merge.weights, strict=True)):
        if weight == 0.0:
            continue
        bias = biases[place].to(dtype)
        if reference is not None and member != merge.into:
            bias = bias[align(reference, _wide(members[place], dtype))]
        total = bias if weight == 1.0 else total.add(bias, alpha=weight)
    return total


def align(reference: ExpertMatrices, other: ExpertMatrices) -> Tensor:
    """Return the order in which the hidden channels of ``other`` match those of ``reference`` best.

    It maximises the sum over channels f of the inner products of the gate rows, up rows and down columns of channel f of
    ``reference`` and of channel ``order[f]`` of ``other``.

    Returns:
        Channels of ``other``, int64, shape (F,); ``permuted(other, order)`` stands channel by channel on ``reference``.
    """
    match_FF = reference.gate_FD @ other.gate_FD.T + reference.up_FD @ other.up_FD.T
    match_FF += reference.down_DF.T @ other.down_DF
    _, order_F = linear_sum_assignment(match_FF.double().cpu().numpy(), maximize=True)
    return torch.from_numpy(order_F).to(match_FF.device)


def permuted(expert: ExpertMatrices, order_F: Tensor) -> ExpertMatrices:
    """Return ``expert`` with its hidden channels in another order; it computes the same function."""
    return ExpertMatrices(expert.gate_FD[order_F], expert.up_FD[order_F], expert.down_DF[:, order_F])


def averaged(recipe: AveragedRows, rows_EX: Tensor) -> Tensor:
    """Return the rows that ``recipe`` makes of ``rows_EX``, in float32 or float64; rows that stay alone keep their value."""
    wide_EX = rows_EX if rows_EX.dtype == torch.float64 else rows_EX.float()
    out = torch.stack([wide_EX[members[0]] for members in recipe.members])
    for row, (members, weights) in enumerate(zip(recipe.members, recipe.weights, strict=True)):
        if len(members) > 1:
            out[row] = sum(weight * wide_EX[member] for member, weight in zip(members, weights, strict=True))
    return out


def _wide(expert: ExpertMatrices, dtype: torch.dtype) -> ExpertMatrices:
    return ExpertMatrices(*(matrix.to(dtype) for matrix in expert))


def _accumulate(sums: list[Tensor], terms: Sequence[Tensor], weight: float) -> None:
    """Add ``weight`` times ``terms`` to ``sums``, which is empty at first."""
    if not sums:
        sums.extend(term * weight for term in terms)
        return
    for total, term in zip(sums, terms, strict=True):
        total.add_(term, alpha=weight)


def _gram(matrix_MN: Tensor) -> Tensor:
    """Return W W^T in float64, because a Gram matrix squares the condition number."""
    wide_MN = matrix_MN.double()
    return wide_MN @ wide_MN.T


def _projected(sum_MN: Tensor, gram_MM: Tensor, columns: int, rank: int) -> Tensor:
    """Return U_r U_r^T times the weighted sum, U_r the leading eigenvectors of the members' summed Gram matrices.

    Args:
        sum_MN: weighted sum of the members' matrices.
        gram_MM: sum of W W^T over them.
        columns: columns of all members side by side; more vectors than min(M, columns) do not exist.
        rank: vectors to keep.
    """
    if rank >= min(sum_MN.shape[0], columns):
        return sum_MN
    left_MR = torch.linalg.eigh(gram_MM).eigenvectors[:, -rank:]
    projected_MN: Tensor = left_MR @ (left_MR.T @ sum_MN.double())
    return projected_MN.to(sum_MN.dtype)
