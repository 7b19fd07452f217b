"""Norms of matrices."""

from __future__ import annotations

import torch
from torch import Tensor


def squared_norm(matrix: Tensor) -> float:
    """Return the squared Frobenius norm, accumulated in float64."""
    return float(torch.linalg.vector_norm(matrix, dtype=torch.float64)) ** 2
