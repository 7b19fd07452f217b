"""Singular values of the matrices of an expert, plain and weighted by what goes into the matrices.

Shape letters: M the three matrices, D hidden size, F expert width, R = min(D, F), X inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bench.calibration.layers.weights import MlpWeights
from bench.calibration.sums.grams import Grams
from methods.framework.stats import Array
from methods.kernels.low_rank import spectrum


def weight_spectra(network: MlpWeights) -> Array:
    """Return the singular values of gate, up and down, descending, shape (M, R)."""
    return _stacked([spectrum(matrix) for matrix in (*network.gate_up_2FD.chunk(2), network.down_DF)])


def whitened_spectra(network: MlpWeights, grams: Grams, names: Sequence[str], expert: int, count: int) -> Array:
    """Return the singular values of W S, S S^T the second moment of the inputs of W, descending, shape (M, R).

    Args:
        network: the expert.
        grams: sums of x x^T, of which one at a time is in memory.
        names: under which it has those of the inputs of gate and up, and those of down.
        expert: number of the expert in ``grams``.
        count: its tokens; with none, the singular values are those of the matrices.
    """
    if not count:
        return weight_spectra(network)
    gram_DD = grams.mean(names[0], expert, count)
    values = [spectrum(matrix_FD, gram_DD) for matrix_FD in network.gate_up_2FD.chunk(2)]
    return _stacked([*values, spectrum(network.down_DF, grams.mean(names[1], expert, count))])


def _stacked(values: Sequence[Tensor]) -> Array:
    stacked: Array = torch.stack(list(values)).double().cpu().numpy()
    return stacked
