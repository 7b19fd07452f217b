"""From a budget of stored parameters to the rank of every matrix.

An M x N matrix costs r (M + N) as factors of rank r, or M N whole, which is what it becomes at the first rank that would not be
cheaper. So its *levels* are the ranks 1, 2, ..., and the last level is the whole matrix; no step from one level to the next
costs more than M + N. Each rule below puts the steps of all matrices into one order that does not depend on the budget, and
the longest beginning of it that fits is taken. Therefore what is stored never exceeds the budget, is short of it by less than one
rank of one matrix, and no rank falls when the budget grows.

Matrices come in groups (one per layer): the shapes of a group are an array [..., 2] of M and N, its ranks one of [...].
Rank 0 stands for a whole matrix.

Shape letters: X matrices of all groups, in order; L levels; E experts of a group; R singular values.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from methods.framework.errors import RefusedError

Numbers = NDArray[np.float64]
Integers = NDArray[np.int64]

NEGLIGIBLE = 1e-12
"""Least weight of a matrix as a share of the largest of its group, so that a matrix of weight 0 has finite keys."""
ROUNDING = 1e-9
"""Relative error of a budget that was computed as a share, which costs no rank."""


def levels(shapes: Integers) -> Integers:
    """Return the number of levels of each matrix: its highest rank as cheaper factors, and one for the whole matrix."""
    rows, columns = shapes[..., 0], shapes[..., 1]
    most: Integers = -(-rows * columns // (rows + columns))
    return most


def uniform_ranks(shapes: Sequence[Integers], budget: float) -> list[Integers]:
    """Return ranks at which every matrix stores the same share of its parameters, up to one rank.

    Step l of a matrix with L levels comes at l / L, ties in the order of the matrices.

    Raises:
        RefusedError: see ``filled``.
    """
    keys = [-_steps(group) / levels(group)[..., None] for group in shapes]
    return filled(keys, shapes, budget)


def importance_ranks(
    importance: Sequence[Numbers], alpha: float, shapes: Sequence[Integers], budget: float
) -> list[Integers]:
    """Return r_ij = floor((I_ij + eps)^alpha / sum_j (I_ij + eps)^alpha * R_a * E_i) for each matrix of expert j of layer i.

    Rank l of expert j is reached at R_a = l / (its share times E_i), so the steps are taken in the order of that, which finds the
    largest R_a of the budget; matrices that are whole take no more, which leaves the rest to the others. Where several
    matrices reach a rank at the same R_a and not all of them fit, the first ones (gate, up, down) do. All ranks are at least 1.

    Args:
        importance: I_ij of the E experts of each group, none negative.
        alpha: 0 makes shares equal.
        shapes: [E, ..., 2] for each group.
        budget: parameters of all matrices together.

    Raises:
        RefusedError: see ``filled``.

    *Source*: arXiv 2411.01016, section 3.3; R_a by the budget, not given there.

    *Differs*: eps is the limit towards 0, so an expert of importance 0 has rank 1 as long as others can grow (alpha > 0); with
    alpha = 0.15 any eps that is not tiny would give it a large share. Where all are 0, shares are equal.
    """
    keys = []
    for values_E, group in zip(importance, shapes, strict=True):
        weights_E = importance_weights(values_E, alpha)
        keys.append(-_steps(group) / weights_E.reshape(-1, *(1,) * (group.ndim - 1)))
    return filled(keys, shapes, budget)


def importance_weights(importance_E: Numbers, alpha: float) -> Numbers:
    """Return the share of each expert times E: (I_j + eps)^alpha over its mean, with eps towards 0."""
    largest = importance_E.max(initial=0.0)
    if largest <= 0.0:
        return np.ones(len(importance_E))
    weights_E = np.maximum((importance_E / largest) ** alpha, NEGLIGIBLE)
    return np.asarray(weights_E * (len(weights_E) / math.fsum(weights_E)))  # the same in any order of experts


def spectrum_ranks(spectra: Sequence[Numbers], shapes: Sequence[Integers], budget: float) -> list[Integers]:
    """Return the ranks that keep the most energy sigma^2 of all matrices together within the budget.

    Each step adds energy at a cost: a rank adds sigma_l^2 for M + N parameters, and the step to the whole matrix adds all that is
    left. That last step often pays more than those before it, so they are pooled: steps from rank k on are worth the
    least slope that any of them has to the end, the upper hull of energy over cost. Steps are taken by energy per
    parameter, ties in the order of matrices. What is found is the best there is for its cost, except in the one matrix
    where the budget ends.

    Args:
        spectra: singular values [..., R] of each group, descending, at least as many as a matrix has levels.
        shapes: [..., 2] for each group.
        budget: parameters of all matrices together.

    Raises:
        RefusedError: see ``filled``.

    *Source*: truncation by loss is that of SVD-LLM, arXiv 2403.07378; the ranks of all matrices from one threshold are ours.
    """
    return filled([_energy_keys(values, group) for values, group in zip(spectra, shapes, strict=True)], shapes, budget)


def filled(keys: Sequence[Numbers], shapes: Sequence[Integers], budget: float) -> list[Integers]:
    """Return the ranks after the longest beginning of all steps, in order of descending key, that fits the budget.

    Args:
        keys: [..., L] for each group; entry l - 1 is that of the step to level l, never larger than the one before it. The
            first level is given to every matrix, and entries beyond its last level are ignored.
        shapes: [..., 2] for each group.
        budget: parameters of all matrices together.

    Raises:
        RefusedError: the budget is below rank 1 in every matrix.
    """
    flat_X2 = np.concatenate([group.reshape(-1, 2) for group in shapes])
    levels_X = levels(flat_X2)
    size_X, whole_X = flat_X2.sum(axis=1), flat_X2.prod(axis=1)
    spare = math.floor(budget * (1.0 + ROUNDING)) - int(np.minimum(size_X, whole_X).sum())
    if spare < 0:
        least = np.minimum(size_X, whole_X).sum() / whole_X.sum()
        raise RefusedError(
            f"{budget:.0f} parameters cannot hold factors of rank 1 of {len(flat_X2)} matrices; the smallest keep is {least:.3g}"
        )
    steps_X = levels_X - 1
    chosen = [
        group.reshape(-1, group.shape[-1])[:, 1:][np.arange(2, group.shape[-1] + 1) <= levels(shape).reshape(-1, 1)]
        for group, shape in zip(keys, shapes, strict=True)
    ]
    order = np.argsort(-np.concatenate(chosen), kind="stable")
    matrix = np.repeat(np.arange(len(flat_X2)), steps_X)
    cost = np.repeat(size_X, steps_X)
    last = np.cumsum(steps_X)[steps_X > 0] - 1
    cost[last] = (whole_X - steps_X * size_X)[steps_X > 0]
    fits = int(np.searchsorted(np.cumsum(cost[order]), spare, side="right"))
    reached_X = 1 + np.bincount(matrix[order[:fits]], minlength=len(flat_X2))
    ranks_X = np.where(reached_X == levels_X, 0, reached_X)
    ends = np.cumsum([group.size // 2 for group in shapes])[:-1]
    return [part.reshape(group.shape[:-1]) for part, group in zip(np.split(ranks_X, ends), shapes, strict=True)]


def _steps(shapes: Integers) -> Numbers:
    """Return the levels 1, 2, ... of a group, with an axis for its matrices."""
    steps_L = np.arange(1, int(levels(shapes).max(initial=1)) + 1, dtype=np.float64)
    return np.broadcast_to(steps_L, (*shapes.shape[:-1], len(steps_L)))


def _energy_keys(spectra: Numbers, shapes: Integers) -> Numbers:
    """Return the energy per parameter of each step, [..., L], pooled from where the step to the whole matrix pays more."""
    energy = np.square(spectra)
    left = np.cumsum(energy[..., ::-1], axis=-1)[..., ::-1]  # of this and all later directions
    step = _steps(shapes)
    size, whole = shapes.sum(axis=-1)[..., None], shapes.prod(axis=-1)[..., None]
    valid = step <= levels(shapes)[..., None]
    cost_left = np.where(valid, whole - (step - 1) * size, 1)
    slope = np.where(valid, left[..., : step.shape[-1]] / cost_left, np.inf)
    slope[..., 0] = np.inf  # the first level is not a choice
    least = slope.min(axis=-1, keepdims=True)
    pooled = np.arange(step.shape[-1]) >= slope.argmin(axis=-1)[..., None]
    keys = np.where(pooled, least, energy[..., : step.shape[-1]] / size)
    return np.asarray(np.minimum.accumulate(keys, axis=-1))  # rounding must not bring a step before an earlier one
