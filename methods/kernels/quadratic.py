"""Mean squared outputs of rows of weights, from the Gram matrix of the inputs.

Shape letters: O rows of weights, X inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

STRIP = 256
"""Inputs whose products with those after them are formed at once; those with the inputs before follow by symmetry."""


def mean_squares(change_OX: Tensor, gram_XX: Tensor) -> Tensor:
    """Return e G e^T for each row e, [O]: the mean square of e x over the inputs x.

    Args:
        change_OX: rows of weights, often the change that a rounding brings.
        gram_XX: G, mean products of the inputs, symmetric, in the dtype of the rows.
    """
    total_O = change_OX.new_zeros(len(change_OX))
    for start in range(0, change_OX.shape[1], STRIP):
        stop = min(start + STRIP, change_OX.shape[1])
        own_OY = change_OX[:, start:stop]
        seen_OY = own_OY @ gram_XX[start:stop, start:stop]
        if stop < change_OX.shape[1]:
            seen_OY = torch.addmm(seen_OY, change_OX[:, stop:], gram_XX[stop:, start:stop], alpha=2.0)
        total_O += (seen_OY * own_OY).sum(dim=1)
    return total_O
