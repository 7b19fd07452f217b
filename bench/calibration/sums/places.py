"""Where accumulators keep their sums: in memory, in temporary files, and in files that become statistics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.calibration.layers.hidden import ScratchRows
from bench.calibration.layers.sample import Sample
from bench.calibration.layers.weights import expert_width
from bench.calibration.sums.disk_array import DiskArray, DiskArrays
from bench.calibration.sums.grams import Grams
from methods.framework.inventory import Inventory, LayerInventory


@dataclass(frozen=True, slots=True)
class Samples:
    """Tokens of the corpus that stand for all, evenly spaced.

    Args:
        sampled: those on which every expert runs.
        compared: those of them on which outputs are compared.
        boundary: those that are compared at the boundaries between layers.
    """

    sampled: Sample
    compared: Sample
    boundary: Sample

    @classmethod
    def of(cls, tokens: int, sampled: int, compared: int, boundary: int) -> Samples:
        """Choose tokens evenly; where there are fewer than asked for, all.

        Args:
            tokens: tokens of the corpus.
            sampled: most tokens on which every expert runs.
            compared: most of those on which outputs are compared.
            boundary: most tokens that are compared at the boundaries between layers.
        """
        first = Sample(tokens, sampled)
        return cls(first, Sample(first.count, compared), Sample(tokens, boundary))


@dataclass(frozen=True)
class ModelPlace:
    """Sums of a whole model.

    Args:
        hidden: D.
        depth: decoder layers.
        device: of the sums.
        scratch: folder for temporary files; None takes the system's.
        samples: tokens that stand for all.
        arrays: files of statistics that are too big for memory.
    """

    hidden: int
    depth: int
    device: torch.device
    scratch: Path | None
    samples: Samples
    arrays: DiskArrays

    @classmethod
    def without_tokens(
        cls, inventory: Inventory, device: torch.device, scratch: Path | None, arrays: DiskArrays | None = None
    ) -> ModelPlace:
        """Return the place of statistics of which no tokens are sampled.

        Args:
            inventory: the model.
            device: of the sums.
            scratch: folder for temporary files; None takes the system's.
            arrays: files of statistics that are too big for memory; None keeps them in files that have no name.
        """
        arrays = arrays or DiskArrays(scratch, named=False)
        return cls(inventory.hidden, len(inventory.layers), device, scratch, Samples.of(0, 0, 0, 0), arrays)

    @property
    def boundary(self) -> Sample:
        """Tokens that are compared at the boundaries between layers."""
        return self.samples.boundary

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros in float64 on the device."""
        return torch.zeros(shape, dtype=torch.float64, device=self.device)

    def rows(self, count: int, width: int, kind: torch.dtype, content: str) -> ScratchRows:
        """Return a temporary matrix in a file.

        Args:
            count: its rows.
            width: entries of a row.
            kind: type of its entries.
            content: what it holds, for messages.

        Raises:
            StatsError: there is no room.
        """
        return ScratchRows(count, width, kind, self.scratch, content)


@dataclass(frozen=True)
class OneLayer(ModelPlace):
    """Sums of one decoder layer.

    Args:
        index: its number.
        layer: what the checkpoint holds for it.
    """

    index: int
    layer: LayerInventory

    @classmethod
    def of(cls, model: ModelPlace, index: int, layer: LayerInventory) -> OneLayer:
        """Return the place of one decoder layer.

        Args:
            model: the place of the model that it belongs to.
            index: of the layer.
            layer: what the checkpoint holds for it.
        """
        return cls(model.hidden, model.depth, model.device, model.scratch, model.samples, model.arrays, index, layer)

    @property
    def width(self) -> int:
        """Channels of the widest expert."""
        return expert_width(self.layer)

    @property
    def sampled(self) -> Sample:
        """Tokens on which every expert runs."""
        return self.samples.sampled

    @property
    def compared(self) -> Sample:
        """Those of them on which outputs are compared."""
        return self.samples.compared

    def file(self, name: str, shape: tuple[int, ...]) -> DiskArray:
        """Return a new array for statistic ``name`` of this layer."""
        return self.arrays.create(name, self.index, shape)

    def grams(self, *, lasting: bool) -> Grams:
        """Return sums in float32 that become statistics, or in float64 that go when the layer is done."""
        if lasting:
            return Grams(self.arrays, self.index, self.device)
        return Grams(DiskArrays(self.scratch, named=False), self.index, self.device, torch.float64)
