"""Sparsity by its definitions, row by row and weight by weight, in numpy; nothing of the product's kernels is used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from methods.framework.inside import Sparsity

Array = NDArray[np.float64]


def zeros_of(scores: list[float], count: int) -> set[int]:
    """Return the places of the ``count`` smallest scores; ties go to the lower place."""
    return {place for _, place in sorted((score, place) for place, score in enumerate(scores))[:count]}


def masked_slowly(weight: Array, norms: Array, sparsity: Sparsity) -> Array:
    """Zero the smallest |w| times norm of each row, or of each group of a row."""
    out = weight.copy()
    inputs = weight.shape[1]
    size = inputs if sparsity.pattern == "unstructured" else int(sparsity.pattern.split(":")[1])
    count = int(size * sparsity.share)
    for row in range(weight.shape[0]):
        for start in range(0, inputs, size):
            scores = [float(abs(weight[row, start + i]) * norms[start + i]) for i in range(size)]
            for place in zeros_of(scores, count):
                out[row, start + place] = 0.0
    return out


def sparsegpt_slowly(weight: Array, gram: Array, sparsity: Sparsity, block: int = 128) -> Array:
    """Optimal brain surgeon with inputs taken in order: for each input the inverse of what remains of the Gram matrix."""
    inputs = weight.shape[1]
    damped = gram + 0.01 * np.mean([s for s in np.diag(gram) if s > 0]) * np.eye(inputs)
    inverses = [np.linalg.inv(damped[i:, i:]) for i in range(inputs)]
    total = int(inputs * sparsity.share)
    out = weight.copy()
    for row in range(weight.shape[0]):
        zero: set[int] = set()
        for i in range(inputs):
            size = block if sparsity.pattern == "unstructured" else int(sparsity.pattern.split(":")[1])
            if i % size == 0:
                end = min(i + size, inputs)
                count = total * end // inputs - total * i // inputs
                scores = [
                    float(out[row, j] ** 2 / inverses[j][0, 0]) if gram[j, j] > 0 else -1.0 / abs(out[row, j])
                    for j in range(i, end)
                ]
                zero = {i + place for place in zeros_of(scores, count)}
            if i in zero:
                change = out[row, i] / inverses[i][0, 0] * inverses[i][0]
                out[row, i:] -= change
                out[row, i] = 0.0
    return out


def loss(weight: Array, sparse: Array, gram: Array) -> float:
    """Return the mean squared change of the outputs, tr((W - Q) H (W - Q)^T)."""
    difference = weight - sparse
    return float(np.trace(difference @ gram @ difference.T))
