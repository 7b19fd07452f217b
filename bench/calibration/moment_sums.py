"""Second moments of what goes into the matrices of every expert: x into gate and up, act(gate x) * (up x) into down.

Squares are summed in float64; for Gram matrices see ``Grams``. Shape letters: E routed experts, N some tokens of one expert, D
hidden size, F expert width, X one of these two.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bench.calibration.disk_array import DiskArrays
from bench.calibration.grams import Grams
from methods.errors import StatsError
from methods.inventory import LayerInventory
from methods.kernels.experts import second_moments
from methods.stats import Array


class _Side(NamedTuple):
    """Names of the statistics of one kind of input."""

    square: str
    gated: str
    gram: str


_INPUTS = _Side("input_square", "gated_input_square", "input_gram")
_CHANNELS = _Side("channel_square", "gated_channel_square", "channel_gram")
NAMES = frozenset(_INPUTS + _CHANNELS)


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
    ) -> None:
        """Begin with zeros and empty files; ``arrays`` are required for Gram matrices."""
        self._needs, self._index = NAMES.intersection(needs), index
        (width, _) = next(layer.with_role("expert.gate")).shape
        self._squares: dict[_Side, Tensor] = {}
        self._counts: dict[_Side, list[int]] = {}
        self._grams: Grams | None = None
        for side, size in ((_INPUTS, hidden), (_CHANNELS, width)):
            if self._needs.intersection(side):
                self._counts[side] = [0] * layer.experts
            if self._needs.intersection((side.square, side.gated)):
                self._squares[side] = torch.zeros(2, layer.experts, size, dtype=torch.float64, device=device)
            if side.gram in self._needs:
                assert arrays is not None
                self._grams = self._grams or Grams(arrays, index, device)
                self._grams.create(side.gram, layer.experts, size)

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

    def _add(self, side: _Side, expert: int, x_NX: Tensor, gates_N: Tensor) -> None:
        self._counts[side][expert] += len(x_NX)
        if side in self._squares:
            self._squares[side][:, expert] += second_moments(x_NX, gates_N)
        if side.gram in self._needs:
            assert self._grams is not None
            self._grams.add(side.gram, expert, x_NX)

    def finished(self, hits_E: Sequence[int]) -> dict[str, Array]:
        """Return the means over tokens; ``hits_E`` is how many each expert saw.

        Raises:
            StatsError: tokens were lost or counted twice, or a value of a Gram matrix is not finite.
        """
        values: dict[str, Array] = {}
        for side, counts_E in self._counts.items():
            if counts_E != list(hits_E):
                raise StatsError(
                    f"layer {self._index}: {side.square} saw {sum(counts_E)} (token, expert) pairs instead of "
                    f"{sum(hits_E)}; this is a defect of the calibration pass"
                )
            if side in self._squares:
                counts_E1 = torch.tensor(counts_E, dtype=torch.float64).clamp_min_(1).unsqueeze(1)
                means = (self._squares[side].cpu() / counts_E1).numpy()
                names = (side.square, side.gated)
                values.update((name, mean) for name, mean in zip(names, means, strict=True) if name in self._needs)
            if self._grams is not None and side.gram in self._needs:
                values[side.gram] = self._grams.finished(side.gram, counts_E)
        return values
