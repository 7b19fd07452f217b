"""Merging weights that are fitted to outputs, from inner products of outputs alone.

Torch and scipy are imported where they are needed, so that describing the methods that use this file imports neither.
Shape letters: S sampled tokens, E experts, N members of a group.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from methods.framework.inventory import Router
from methods.framework.stats import Array

RIDGE = 1e-4
"""Added to the diagonal, relative to the mean squared output: members that are alike to that degree share equally."""

TOKENS_AT_ONCE = 2048


def token_gates(logits_SE: Array, router: Router, top_k: int, correction_E: Array) -> Array:
    """Return the weight that multiplies each expert's output at each token, 0 unless chosen, shape (S, E).

    Args:
        logits_SE: of the router at the sampled tokens.
        router: how logits become weights.
        top_k: K.
        correction_E: added to scores for the choice alone; zeros where the router has none.
    """
    import torch

    from methods.kernels.routing import route

    logits = torch.from_numpy(np.asarray(logits_SE, dtype=np.float64))
    routing = route(logits, router, top_k, torch.from_numpy(np.asarray(correction_E, dtype=np.float64)))
    gates: Array = torch.zeros_like(logits).scatter_(1, routing.indices_TK, routing.weights_TK).numpy()
    return gates


def fitted_weights(group: Sequence[int], gates_SE: Array, gram_SEE: Array) -> tuple[float, ...]:
    """Return weights a >= 0 that add up to 1 and bring one output in place of the group's nearest to what it replaces.

    They minimise sum over tokens of |sum_{i in G} g_i f_i - s sum_{i in G} a_i f_i|^2 with s = sum_{i in G} g_i. Since they
    add up to 1, this is a^T M a, where M holds the inner products of the residuals s f_i - sum_j g_j f_j. Where no weight
    is at its bound, a is in proportion to M^-1 1.

    Args:
        group: members.
        gates_SE: weight of each expert at each token, 0 unless chosen.
        gram_SEE: inner products of the experts' outputs at each token; read in slices.
    """
    members = np.asarray(group, dtype=np.int64)
    residual_NN = np.zeros((len(members), len(members)))
    scale = 0.0
    used = np.flatnonzero(gates_SE[:, members].sum(axis=1) > 0.0)
    for start in range(0, len(used), TOKENS_AT_ONCE):
        tokens = used[start : start + TOKENS_AT_ONCE]
        gram = np.asarray(gram_SEE[np.ix_(tokens, members, members)], dtype=np.float64)
        gates = gates_SE[np.ix_(tokens, members)]
        total = gates.sum(axis=1)
        squared = np.einsum("s,sij->ij", total**2, gram)
        crossed = np.einsum("s,sij,sj->i", total, gram, gates)
        residual_NN += squared - crossed[:, None] - crossed[None, :] + np.einsum("si,sij,sj->", gates, gram, gates)
        scale += float(np.trace(squared)) / len(members)
    if scale <= 0.0:
        return (1.0 / len(members),) * len(members)
    return _smallest_on_simplex(residual_NN / scale + RIDGE * np.eye(len(members)))


def _smallest_on_simplex(matrix: Array) -> tuple[float, ...]:
    """Return the a >= 0 with sum 1 for which a^T M a is smallest.

    With a = y / sum(y), the smallest y^T M y - 2 sum(y) over y >= 0 has the same direction: over the length t of y = t a it
    is -1 / (a^T M a). It is a least-squares problem in the root of M.
    """
    from scipy.optimize import nnls

    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2.0)
    values = np.maximum(values, RIDGE / 10.0)  # rounding of float32 inner products can make them negative
    root = np.sqrt(values)[:, None] * vectors.T
    solution, _ = nnls(root, (vectors / np.sqrt(values)).T @ np.ones(len(matrix)))
    return tuple(float(weight) for weight in solution / solution.sum())
