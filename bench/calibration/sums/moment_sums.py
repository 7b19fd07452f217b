"""Moments of what goes into the matrices of every expert: x into gate and up, act(gate x) * (up x) into down.

Magnitudes and squares are summed in float64; for Gram matrices see ``Grams``. Shape letters: E routed experts, N some tokens of
one expert, D hidden size, F expert width, X one of these two.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.weights import expert_width
from bench.calibration.sums.disk_array import DiskArrays
from bench.calibration.sums.grams import Grams
from bench.calibration.sums.spectra import whitened_spectra
from methods.framework.errors import StatsError
from methods.framework.inventory import LayerInventory
from methods.framework.stats import Array
from methods.kernels.experts import second_moments

_PIECE = 512
"""Tokens of which channels are widened to float64 at once."""


class _Side(NamedTuple):
    """Names of the statistics of one kind of input."""

    square: str
    gated: str
    gram: str


_INPUTS = _Side("input_square", "gated_input_square", "input_gram")
_CHANNELS = _Side("channel_square", "gated_channel_square", "channel_gram")
_SPECTRUM = "whitened_spectrum"
_SCALED = ("channel_energy", "channel_peak")
"""Moments that are multiplied by the squared norms of the columns of down."""
NAMES = frozenset((*_INPUTS, *_CHANNELS, _SPECTRUM, *_SCALED, "channel_magnitude"))


class MomentSums:
    """Sums of one layer over the tokens that are routed to each expert."""

    def __init__(
        self,
        needs: Collection[str],
        layer: LayerInventory,
        hidden: int,
        device: torch.device,
        index: int,
        arrays: DiskArrays | None,
        scratch: Path | None = None,
    ) -> None:
        """Begin with zeros and empty files.

        Args:
            needs: statistics.
            layer: the layer, number ``index``.
            hidden: D.
            device: of the sums.
            index: names the layer.
            arrays: required for Gram matrices.
            scratch: folder for sums that go when the layer is finished.
        """
        self._needs, self._index, self._experts = NAMES.intersection(needs), index, layer.experts
        width = expert_width(layer)
        self._squares: dict[_Side, Tensor] = {}
        self._counts: dict[_Side, list[int]] = {}
        self._grams: Grams | None = None
        self._passing: DiskArrays | None = None
        self._whitening: Grams | None = None
        if self._wants(_SPECTRUM):
            self._passing = DiskArrays(scratch, named=False)
            self._whitening = Grams(self._passing, index, device, torch.float64)
        extremes = self._wants("channel_magnitude", "channel_peak")
        self._extremes = torch.zeros(2, layer.experts, width, dtype=torch.float64, device=device) if extremes else None
        for side, size in ((_INPUTS, hidden), (_CHANNELS, width)):
            of_channels = side is _CHANNELS and self._wants(*_SCALED, "channel_magnitude")
            if self._wants(*side, _SPECTRUM) or of_channels:
                self._counts[side] = [0] * layer.experts
            if self._wants(side.square, side.gated) or (side is _CHANNELS and self._wants("channel_energy")):
                self._squares[side] = torch.zeros(2, layer.experts, size, dtype=torch.float64, device=device)
            if self._wants(side.gram):
                assert arrays is not None
                self._grams = self._grams or Grams(arrays, index, device)
                self._grams.create(side.gram, layer.experts, size)
            if self._whitening is not None:
                self._whitening.create(side.gram, layer.experts, size)

    def _wants(self, *names: str) -> bool:
        return not self._needs.isdisjoint(names)

    @property
    def wants_inputs(self) -> bool:
        """Whether inputs of gate and up are measured."""
        return _INPUTS in self._counts

    @property
    def wants_channels(self) -> bool:
        """Whether inputs of down are measured."""
        return _CHANNELS in self._counts

    def inputs(self, expert: int, x_ND: Tensor, gates_N: Tensor) -> None:
        """Add the inputs of gate and up of ``expert`` on some tokens that are routed to it with weights ``gates_N``."""
        self._add(_INPUTS, expert, x_ND, gates_N)

    def channels(self, expert: int, x_NF: Tensor, gates_N: Tensor) -> None:
        """Add the inputs of down on such tokens."""
        self._add(_CHANNELS, expert, x_NF, gates_N)
        if self._extremes is not None and len(x_NF):
            magnitude_F, peak_F = self._extremes[:, expert]
            for some_NF, some_N in zip(x_NF.split(_PIECE), gates_N.split(_PIECE), strict=True):
                size_NF = some_NF.double().abs()
                magnitude_F += size_NF.sum(dim=0)
                gated_F = size_NF.mul_(some_N.double().abs().unsqueeze(1)).amax(dim=0)
                torch.maximum(peak_F, gated_F, out=peak_F)

    def _add(self, side: _Side, expert: int, x_NX: Tensor, gates_N: Tensor) -> None:
        self._counts[side][expert] += len(x_NX)
        if side in self._squares:
            self._squares[side][:, expert] += second_moments(x_NX, gates_N)
        if self._grams is not None and side.gram in self._grams:
            self._grams.add(side.gram, expert, x_NX)
        if self._whitening is not None:
            self._whitening.add(side.gram, expert, x_NX)

    def finished(self, hits_E: Sequence[int], experts: LayerExperts | None = None) -> dict[str, Array]:
        """Return the statistics.

        Args:
            hits_E: tokens that each expert saw.
            experts: the layer's experts, of which one is read at a time for what combines moments with weights.

        Raises:
            StatsError: tokens were lost or counted twice, or a value of a Gram matrix is not finite.
        """
        values: dict[str, Array] = {}
        counts_E1 = np.maximum(np.array(hits_E, dtype=np.float64), 1.0)[:, None]
        for side, counts_E in self._counts.items():
            if counts_E != list(hits_E):
                raise StatsError(
                    f"layer {self._index}: {side.square} saw {sum(counts_E)} (token, expert) pairs instead of "
                    f"{sum(hits_E)}; this is a defect of the calibration pass"
                )
            if side in self._squares:
                values.update(
                    zip((side.square, side.gated), self._squares[side].cpu().numpy() / counts_E1, strict=True)
                )
            if self._grams is not None and side.gram in self._grams:
                values[side.gram] = self._grams.finished(side.gram, counts_E)
        if self._extremes is not None:
            values["channel_magnitude"] = self._extremes[0].cpu().numpy() / counts_E1
        if self._wants(*_SCALED, _SPECTRUM):
            assert experts is not None
            values.update(self._beside_weights(hits_E, experts))
        if self._passing is not None:
            self._passing.close()
        return {name: value for name, value in values.items() if name in self._needs}

    def _beside_weights(self, hits_E: Sequence[int], experts: LayerExperts) -> dict[str, Array]:
        """Return the statistics that combine sums with weights; each expert is read once more."""
        norms_EF, spectra_EMR = [], []
        for expert, count in enumerate(hits_E):
            network = experts.read(expert)
            norms_EF.append(torch.linalg.vector_norm(network.down_DF, dim=0, dtype=torch.float64).square())
            if self._whitening is not None:
                names = (_INPUTS.gram, _CHANNELS.gram)
                spectra_EMR.append(whitened_spectra(network, self._whitening, names, expert, count))
        scale_EF = torch.stack(norms_EF).cpu().numpy()
        values: dict[str, Array] = {}
        if spectra_EMR:
            values[_SPECTRUM] = np.stack(spectra_EMR)
        if self._wants("channel_energy"):
            values["channel_energy"] = self._squares[_CHANNELS][1].cpu().numpy() * scale_EF
        if self._extremes is not None:
            values["channel_peak"] = self._extremes[1].square().cpu().numpy() * scale_EF
        return values
