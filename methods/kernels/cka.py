"""Linear CKA between experts from Gram matrices over samples, with memory for one expert at a time.

Shape letters: E experts, N samples, P features of a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from methods.framework.place import Rows
from methods.framework.stat_spec import Array

_PIECE_BYTES = 32 << 20
"""Bound on the parts of all experts' Gram matrices that are in memory at once."""


def linear_cka(
    features: Iterable[Sequence[Tensor]],
    experts: int,
    samples: int,
    rows: Callable[[int, int, torch.dtype, str], Rows],
) -> Array:
    """Return <K_i, K_j> / (|K_i| |K_j|), where K_i = A_i A_i^T and the columns of A_i are centred.

    Args:
        features: for each expert the matrices (N, P) that stand side by side in A; they may be overwritten.
        experts: number of experts.
        samples: N.
        rows: makes a temporary matrix (rows, width, type, content) for the Gram matrices of all experts, N^2 numbers each.

    Returns:
        Shape (E, E), in [0, 1]; an expert whose features do not vary has similarity 0 to all.

    *Source*: linear CKA, arXiv 1905.00414, section 3; the form over samples needs no cross products of features.
    """
    store: Rows | None = None
    dtype = torch.float32
    device = torch.device("cpu")
    for expert, parts in enumerate(features):
        gram_NN = torch.zeros(samples, samples, dtype=parts[0].dtype, device=parts[0].device)
        for part_NP in parts:
            part_NP.sub_(part_NP.mean(dim=0))
            gram_NN.addmm_(part_NP, part_NP.T)
        norm = torch.linalg.vector_norm(gram_NN, dtype=torch.float64)
        if norm > 0:
            gram_NN /= norm
        if store is None:
            dtype, device = gram_NN.dtype, gram_NN.device
            store = rows(experts * samples, samples, dtype, "Gram matrices over samples")
        store.write(expert * samples, gram_NN)
    assert store is not None
    total_EE = torch.zeros(experts, experts, dtype=torch.float64, device=device)
    most = max(1, _PIECE_BYTES // (experts * samples * dtype.itemsize))
    for start in range(0, samples, most):
        stop = min(start + most, samples)
        offsets = range(0, experts * samples, samples)
        piece_EX = torch.stack([store.read(o + start, o + stop).flatten() for o in offsets]).to(device)
        total_EE += piece_EX @ piece_EX.T
    norms_E = total_EE.diagonal().sqrt()
    norms_EE = norms_E[:, None] * norms_E
    similarity: Array = torch.where(norms_EE > 0, total_EE / norms_EE, 0.0).clamp(0.0, 1.0).cpu().numpy()
    return similarity
