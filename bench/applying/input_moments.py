"""Moments of the inputs of one matrix, in the shape in which a kernel reads them.

Letters: M outputs of a matrix, X its inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.low_rank import root
from methods.kernels.sparsity import InputMoments


def sliced(moments: InputMoments, kept_X: Tensor) -> InputMoments:
    """Return the moments of some of the inputs."""
    square_X, gram_XX = moments
    return InputMoments(
        None if square_X is None else square_X[kept_X], None if gram_XX is None else gram_XX[kept_X][:, kept_X]
    )


def on_device_of(moments: InputMoments | None, weight: Tensor) -> InputMoments | None:
    """Return ``moments`` on the device of ``weight``."""
    if moments is None:
        return None
    return InputMoments(*(None if value is None else value.to(weight.device) for value in moments))


def gram_of(moments: InputMoments | None, weight: Tensor) -> Tensor | None:
    """Return the Gram matrix of the inputs of a matrix, on its device; None where there is none."""
    return None if moments is None or moments.gram_XX is None else moments.gram_XX.to(weight.device)


def root_of(moments: InputMoments | None, weight: Tensor) -> Tensor | None:
    """Return a root of the second moment of the inputs of a matrix; None where nothing is known of them."""
    gram_XX = gram_of(moments, weight)
    return None if gram_XX is None or not bool(gram_XX.any()) else root(gram_XX)


def square_of(moments: InputMoments | None, weight_MX: Tensor) -> Tensor:
    """Return the mean squares of the inputs of a matrix, ones where they were not measured."""
    if moments is None:
        return torch.ones(weight_MX.shape[1], dtype=torch.float64, device=weight_MX.device)
    square_X = moments.square_X if moments.square_X is not None else moments.gram_XX.diagonal()  # type: ignore[union-attr]  # one of the two is there
    return square_X.double().to(weight_MX.device)
