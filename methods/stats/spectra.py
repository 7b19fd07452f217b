"""Singular values of the matrices of experts, plain and weighted by what goes into the matrices.

Shape letters: N some tokens, M the three matrices, D hidden size, F expert width, R = min(D, F), X inputs of a matrix; see
``methods.framework.stat_spec``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import GramSums, LayerPlace, Network
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_INPUTS, _CHANNELS = "input_gram", "channel_gram"
"""What the sums are called in messages."""


class WeightSpectrum(Accumulator):
    """Singular values of the matrices themselves."""

    specs = (
        StatSpec(
            "weight_spectrum",
            ("E", "M", "R"),
            "moe",
            "weights",
            "singular values of gate, up, down, descending",
            "weight",
        ),
    )

    def finished(self, seen: Seen) -> dict[str, Array]:
        spectra = [_plain(seen.experts.read(expert)) for expert in range(len(seen.experts))]
        return {"weight_spectrum": np.stack(spectra)}


class WhitenedSpectrum(Accumulator):
    """Singular values of W S, S S^T the second moment of the inputs of W, of which sums are in float64."""

    specs = (
        StatSpec(
            "whitened_spectrum",
            ("E", "M", "R"),
            "moe",
            "routed",
            "singular values, descending, of W S, W gate, up or down and S S^T the mean over T_j of x x^T, x the input of W; "
            "those of W where T_j is empty",
            "output",
        ),
    )
    shown = frozenset({"inputs", "channels"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._grams = place.grams(lasting=False)
        self._grams.create(_INPUTS, place.layer.experts, place.hidden)
        self._grams.create(_CHANNELS, place.layer.experts, place.width)

    @classmethod
    def passing_bytes(cls, sizes: Mapping[str, int]) -> int:
        return 8 * sizes["E"] * (sizes["D"] ** 2 + sizes["F"] ** 2)

    def inputs(self, expert: int, x_ND: Tensor, gates_N: Tensor) -> None:
        self._grams.add(_INPUTS, expert, x_ND)

    def channels(self, expert: int, x_NF: Tensor, gates_N: Tensor) -> None:
        self._grams.add(_CHANNELS, expert, x_NF)

    def finished(self, seen: Seen) -> dict[str, Array]:
        spectra = [
            _whitened(seen.experts.read(expert), self._grams, expert, count) for expert, count in enumerate(seen.hits_E)
        ]
        self._grams.close()
        return {"whitened_spectrum": np.stack(spectra)}


def _plain(network: Network) -> Array:
    """Return the singular values of gate, up and down, descending, shape (M, R)."""
    from methods.kernels.low_rank import spectrum

    return _stacked([spectrum(matrix) for matrix in (*network.gate_up_2FD.chunk(2), network.down_DF)])


def _whitened(network: Network, grams: GramSums, expert: int, count: int) -> Array:
    """Return those weighted by the inputs of ``count`` tokens; one of ``grams`` at a time is in memory."""
    from methods.kernels.low_rank import spectrum

    if not count:
        return _plain(network)
    gram_DD = grams.mean(_INPUTS, expert, count)
    values = [spectrum(matrix_FD, gram_DD) for matrix_FD in network.gate_up_2FD.chunk(2)]
    return _stacked([*values, spectrum(network.down_DF, grams.mean(_CHANNELS, expert, count))])


def _stacked(values: Sequence[Tensor]) -> Array:
    stacked: Array = torch.stack(list(values)).double().cpu().numpy()
    return stacked
