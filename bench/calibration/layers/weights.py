"""Weights from the checkpoint into buffers that are allocated once and used again for every layer and expert.

Shape letters: D hidden size, F expert width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.checkpoint.tensor_files import TORCH_DTYPES
from bench.experts.whole import stored_expert, stored_linear
from methods.framework.inventory import EXPERT_BIAS_ROLES, EXPERT_ROLES, LayerInventory, TensorEntry
from methods.framework.linears import LINEAR_ROLES

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class MlpWeights:
    """Matrices of one gated feed-forward network, gate above up in one matrix: views of reused buffers; and its biases."""

    gate_up_2FD: Tensor
    down_DF: Tensor
    biases: tuple[Tensor, Tensor] | None = None


class WeightReader:
    """Reads tensors on ``device`` in ``dtype``; each buffer name holds one tensor at a time."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        """Allocate nothing yet.

        Args:
            checkpoint: an open checkpoint.
            device: where tensors are put.
            dtype: to which they are converted.
        """
        self._checkpoint, self._device, self._dtype = checkpoint, device, dtype
        self._buffers: dict[str, Tensor] = {}

    def read(self, buffer: str, entry: TensorEntry) -> Tensor:
        """Return the tensor of ``entry`` in the buffer called ``buffer``, whose former content is gone.

        It may be the whole matrix of a linear layer that is stored in few bits, which is read as the values that it stands for.
        """
        out = self._view(buffer, entry.shape, self._dtype)
        self._read_into(entry, out)
        return out

    def read_exact(self, buffer: str, entry: TensorEntry) -> Tensor:
        """Do the same in at least float32: routers decide by differences that half precision loses."""
        out = self._view(buffer, entry.shape, torch.promote_types(self._dtype, torch.float32))
        self._checkpoint.read_into(entry, out)
        return out

    def read_new(self, entry: TensorEntry) -> Tensor:
        """Return the tensor of ``entry`` in memory of its own, in at least float32."""
        out = torch.empty(entry.shape, dtype=torch.promote_types(self._dtype, torch.float32), device=self._device)
        self._checkpoint.read_into(entry, out)
        return out

    def as_stored(self, value: Tensor, entry: TensorEntry) -> Tensor:
        """Return ``value`` as it is read back once it was written in the type of ``entry``, in at least float32."""
        stored = value.to(TORCH_DTYPES[entry.dtype])
        return stored.to(self._device, torch.promote_types(self._dtype, torch.float32))

    def hold_mlp(
        self, buffer: str, gate_FD: Tensor, up_FD: Tensor, down_DF: Tensor, width: int | None = None
    ) -> MlpWeights:
        """Return these matrices as a network in ``buffer``, where ``read_mlp`` would put one that is read.

        Args:
            buffer: name of the place, whose earlier content is overwritten.
            gate_FD: matrix of the gate.
            up_FD: matrix beside it.
            down_DF: matrix of the output.
            width: channels of the result, at least F; those behind the network's own are zeros and add nothing. None
                for F.
        """
        own, hidden = gate_FD.shape
        width = own if width is None else width
        gate_up_2FD = self._view(f"{buffer}.gate_up", (2 * width, hidden), self._dtype)
        held_DF = self._view(f"{buffer}.down", (hidden, width), self._dtype)
        if own < width:
            gate_up_2FD.zero_()
            held_DF.zero_()
        gate_up_2FD[:own], gate_up_2FD[width : width + own], held_DF[:, :own] = gate_FD, up_FD, down_DF
        return MlpWeights(gate_up_2FD, held_DF)

    def read_expert(self, buffer: str, layer: LayerInventory, expert: int) -> MlpWeights:
        """Return a routed expert, whatever the form in which it is stored, with as many channels as the widest of ``layer``.

        Args:
            buffer: name of the place, whose earlier content is overwritten.
            layer: what the checkpoint holds for the layer.
            expert: its number among those that are stored.
        """
        if layer.form is None:
            parts = (next(e for e in layer.with_role(role) if e.expert == expert) for role in EXPERT_ROLES)
            network = self.read_mlp(buffer, *parts)
            return replace(network, biases=self.read_biases(layer, expert)) if layer.biased else network
        (index,) = {entry.layer for entry in layer.tensors if entry.expert == expert}
        assert index is not None
        whole = stored_expert(self._checkpoint, index, expert)
        return self.hold_mlp(buffer, *whole, width=expert_width(layer))

    def read_biases(self, layer: LayerInventory, expert: int) -> tuple[Tensor, Tensor]:
        """Return the biases of a routed expert, those of gate and up behind each other, (2F,), and that of down, (D,)."""
        own = {entry.role: entry for entry in layer.with_role(*EXPERT_BIAS_ROLES) if entry.expert == expert}
        gate_F, up_F, down_D = (self.read_new(own[role]).to(self._dtype) for role in EXPERT_BIAS_ROLES)
        return torch.cat([gate_F, up_F]), down_D

    def buffer(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Return a buffer of ``shape`` in at least float32; its content is what it happens to be."""
        return self._view(name, shape, torch.promote_types(self._dtype, torch.float32))

    def read_mlp(self, buffer: str, gate: TensorEntry, up: TensorEntry, down: TensorEntry) -> MlpWeights:
        """Return a gated feed-forward network, gate and up in one matrix.

        Args:
            buffer: name of the place, whose earlier content is overwritten.
            gate: where the matrix of the gate lies, (F, D).
            up: that of the matrix beside it, (F, D).
            down: that of the matrix of the output, (D, F).
        """
        width, hidden = gate.shape
        gate_up_2FD = self._view(f"{buffer}.gate_up", (2 * width, hidden), self._dtype)
        self._read_into(gate, gate_up_2FD[:width])
        self._read_into(up, gate_up_2FD[width:])
        return MlpWeights(gate_up_2FD, self.read(f"{buffer}.down", down))

    def _read_into(self, entry: TensorEntry, out: Tensor) -> None:
        layer = None if entry.layer is None else self._checkpoint.inventory.layers[entry.layer]
        if entry.role in LINEAR_ROLES and layer is not None and layer.linear_bits is not None:
            out.copy_(stored_linear(self._checkpoint, entry))
        else:
            self._checkpoint.read_into(entry, out)

    def _view(self, buffer: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        numel = math.prod(shape)
        flat = self._buffers.get(buffer)
        if flat is None or flat.numel() < numel:
            flat = self._buffers[buffer] = torch.empty(numel, dtype=dtype, device=self._device)
        return flat[:numel].view(shape)


def expert_entries(layer: LayerInventory) -> list[tuple[TensorEntry, TensorEntry, TensorEntry]]:
    """Return (gate, up, down) of every routed expert, by expert index."""
    parts = [
        {entry.expert: entry for entry in layer.with_role(f"expert.{matrix}")} for matrix in ("gate", "up", "down")
    ]
    return [(parts[0][e], parts[1][e], parts[2][e]) for e in range(layer.experts)]


def expert_width(layer: LayerInventory) -> int:
    """Return the channels of the widest routed expert of ``layer``."""
    return max(
        entry.shape[0] for entry in layer.tensors if entry.expert is not None and entry.role.startswith("expert.gate")
    )
