"""Matrices of several experts as mixtures of bases that they share: W_i = A_i f(sum_j alpha_ij B_j).

Shape letters: E experts, C bases, M outputs of a matrix, N its inputs, R rank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Activation = Literal["silu", "tanh"]

FUNCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"silu": torch.nn.functional.silu, "tanh": torch.tanh}

ELEMENTS_AT_ONCE = 1 << 27
"""Elements of activated mixtures that exist at a time; their number is E R N."""
HOME = 2.0
"""Initial logit of the base of an expert's own group; those of the others are 0."""
NOISE = 0.01
"""Standard deviation of what the seed adds to the initial logits, so that no two experts of a group are treated alike."""
RIDGE = 1e-6
"""Share of the mean square of the activated mixture that keeps its second moment invertible."""


class FittedBases(NamedTuple):
    """What stands for the matrices: A_i [E, M, R], alpha [E, C] with rows that add up to 1, and B_j [C, R, N]."""

    left_EMR: Tensor
    mix_EC: Tensor
    bases_CRN: Tensor


def fit_bases(
    weights_EMN: Tensor, count: int, rank: int, activation: Activation, steps: int, rate: float, seed: int
) -> FittedBases:
    """Return factors and shared bases for which the squared error, each matrix divided by its root mean square, is small.

    Bases start as the leading right singular vectors of the matrices of a group of experts (E/C successive ones; where C > E
    the groups repeat), the logits of alpha favour an expert's own group, and A_i is the least-squares solution. Adam then
    fits all three, its rate falling to 0 along a cosine, and A_i is solved once more for the bases found. What Adam did is
    kept only if the error is smaller than at the start.

    Args:
        weights_EMN: one matrix of each expert.
        count: C.
        rank: R, from 1 to min(M, N).
        activation: f.
        steps: steps of Adam.
        rate: its learning rate at the start, for bases and factors with elements of the order of 1.
        seed: of the initial logits.

    Returns:
        Three float32 tensors on the device of the weights. The scale of each matrix is inside its A_i.

    Raises:
        ValueError: ``rank`` or ``count`` out of range; a defect of the caller.

    *Source*: MoBE, arXiv 2508.05257: the factorisation, the softmax, Adam, and the start from singular vectors of groups.

    *Differs*: (1) the paper normalises by mean and standard deviation and stores the latter in A_i; the three tensors cannot give
    back a mean, so matrices are divided by their root mean square alone, and the mean is part of what is fitted. (2) A_i is
    solved by least squares before and after Adam. (3) The rate decays, so that a few thousand steps converge. (4) The groups
    and the initial logits are our choice.
    """
    experts, _, inputs = weights_EMN.shape
    if count < 1 or not 1 <= rank <= min(weights_EMN.shape[1:]):
        raise ValueError(f"{count} bases of rank {rank} for matrices of shape {tuple(weights_EMN.shape[1:])}")
    wide_EMN = weights_EMN.float()
    scale_E11 = wide_EMN.square().mean(dim=(1, 2), keepdim=True).sqrt()
    scale_E11 = torch.where(scale_E11 > 0, scale_E11, 1.0)
    target_EMN = wide_EMN / scale_E11
    function = FUNCTIONS[activation]
    at_once = max(1, ELEMENTS_AT_ONCE // (rank * inputs))

    group_E = torch.arange(experts, device=target_EMN.device) * min(count, experts) // experts
    bases_CRN = torch.stack([_directions(target_EMN[group_E == j % experts], rank) for j in range(count)])
    noise_EC = torch.randn(experts, count, generator=torch.Generator().manual_seed(seed)).to(target_EMN)
    home_EC = group_E.unsqueeze(1) == torch.arange(count, device=group_E.device) % experts
    logits_EC = HOME * home_EC + NOISE * noise_EC
    start = _solved(target_EMN, logits_EC, bases_CRN, function, at_once)
    fitted = _adam(target_EMN, start[1], logits_EC, bases_CRN, function, steps, rate, at_once)
    end = _solved(target_EMN, *fitted, function, at_once)
    if end[0] < start[0]:
        return FittedBases(end[1] * scale_E11, fitted[0].softmax(dim=1), fitted[1])
    return FittedBases(start[1] * scale_E11, logits_EC.softmax(dim=1), bases_CRN)


def restored(left_MR: Tensor, mix_C: Tensor, bases_CRN: Tensor, activation: Activation) -> Tensor:
    """Return A f(sum_j alpha_j B_j), the matrix of one expert.

    Args:
        left_MR: A.
        mix_C: alpha.
        bases_CRN: B, shared by the experts.
        activation: name of f.
    """
    return left_MR @ FUNCTIONS[activation](torch.tensordot(mix_C, bases_CRN, dims=1))


def _directions(group_EMN: Tensor, rank: int) -> Tensor:
    """Return the leading right singular vectors of the matrices on top of each other, with elements of the order of 1."""
    gram_NN = torch.einsum("emi,emj->ij", group_EMN.double(), group_EMN.double())
    vectors_NN = torch.linalg.eigh(gram_NN).eigenvectors.flip(1)  # the largest first
    directions_RN: Tensor = (vectors_NN[:, :rank].T * math.sqrt(len(vectors_NN))).to(group_EMN)
    return directions_RN


def _solved(
    target_EMN: Tensor, logits_EC: Tensor, bases_CRN: Tensor, function: Callable[[Tensor], Tensor], at_once: int
) -> tuple[float, Tensor]:
    """Return the squared error and the A_i of least error for given bases, found in float64."""
    lefts, error = [], 0.0
    for target_MN, mix_C in zip(target_EMN, logits_EC.softmax(dim=1), strict=True):
        mixed_RN = function(torch.tensordot(mix_C, bases_CRN, dims=1)).double()
        gram_RR = mixed_RN @ mixed_RN.T
        gram_RR.diagonal().add_(RIDGE * gram_RR.diagonal().mean() + torch.finfo(torch.float64).tiny)
        left_MR = torch.cholesky_solve(mixed_RN @ target_MN.double().T, torch.linalg.cholesky(gram_RR)).T
        error += float((target_MN - left_MR @ mixed_RN).square().sum())
        lefts.append(left_MR.to(target_EMN))
    return error, torch.stack(lefts)


def _adam(
    target_EMN: Tensor,
    left_EMR: Tensor,
    logits_EC: Tensor,
    bases_CRN: Tensor,
    function: Callable[[Tensor], Tensor],
    steps: int,
    rate: float,
    at_once: int,
) -> tuple[Tensor, Tensor]:
    """Return logits and bases after ``steps`` steps on the mean squared error."""
    root = math.sqrt(left_EMR.shape[2])  # elements of A_i are of the order of 1 / sqrt(R)
    state = [(left_EMR * root).clone(), logits_EC.clone(), bases_CRN.clone()]
    left, logits, bases = (tensor.requires_grad_() for tensor in state)
    optimiser = torch.optim.Adam([left, logits, bases], lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.enable_grad():
        for _ in range(steps):
            optimiser.zero_grad()
            for part in torch.arange(len(target_EMN)).split(at_once):
                rows = slice(int(part[0]), int(part[-1]) + 1)
                mixed = function(torch.einsum("ec,crn->ern", logits[rows].softmax(dim=1), bases))
                error = (torch.bmm(left[rows] / root, mixed) - target_EMN[rows]).square().sum() / target_EMN.numel()
                error.backward()
            optimiser.step()
            schedule.step()
    return logits.detach(), bases.detach()
