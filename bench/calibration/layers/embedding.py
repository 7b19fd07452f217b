"""Embeddings of tokens, of which only the rows that occur are read.

Shape letters: T tokens, D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint


def token_ids(windows: Sequence[Sequence[int]]) -> Tensor:
    """Return the tokens of all windows, one behind the other."""
    return torch.from_numpy(np.concatenate([np.asarray(window, dtype=np.int64) for window in windows]))


def embedded(checkpoint: Checkpoint, ids_T: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the embeddings of tokens as they enter the first layer, shape (T, D).

    Args:
        checkpoint: whose embedding is read.
        ids_T: the tokens.
        device: of the result.
        dtype: of the result.
    """
    (entry,) = (entry for entry in checkpoint.inventory.outer if entry.role == "embedding")
    rows, positions_T = ids_T.unique(return_inverse=True)
    table = checkpoint.read(entry, rows=tuple(rows.tolist())).to(device, dtype)
    scale = checkpoint.family.embedding_scale(checkpoint.inventory.config)
    return (table if scale == 1.0 else table * scale)[positions_T.to(device)]
