"""Tensors of a compressed checkpoint that are computed: experts, linear layers, averaged rows, scaled norms, constant vectors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.applying.layer_maker import LayerMaker, Read
from bench.applying.linear_maker import LinearMaker
from bench.applying.moments import constants
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.tensor_files import TORCH_DTYPES
from bench.experts.lazy import lazily
from methods.framework.inventory import EXPERT_BIAS_ROLES, EXPERT_ROLES, Inventory, TensorEntry
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.stats import Stats
from methods.framework.transfer import (
    AveragedRows,
    Constants,
    Dequantised,
    InsideExpert,
    MergedExpert,
    ScaledInputs,
    SlimmedLinear,
    Transfer,
)
from methods.kernels.merging import ExpertMatrices, averaged, merged, merged_bias


class Recipes:
    """Computes tensors of a result from those of its source, one computed expert in memory at a time.

    Args:
        checkpoint: the source.
        moments: statistics of the source, those that the plan names.
        device: torch device on which experts are computed.
    """

    def __init__(self, checkpoint: Checkpoint, moments: Stats | None, device: str = "cpu") -> None:
        """Compute nothing yet."""
        self._device = torch.device(device)
        self._checkpoint = checkpoint
        self._moments = moments
        self._merged: tuple[tuple[int, Merge], ExpertMatrices] | None = None
        self._maker: tuple[int, LayerMaker] | None = None
        self._linear_maker: tuple[int, LinearMaker] | None = None

    def tensor(self, transfer: Transfer) -> Tensor:
        """Return the values of a transfer with a recipe: computed in float32 (float64 from float64), then rounded."""
        recipe, target = transfer.recipe, transfer.target
        dtype = TORCH_DTYPES[target.dtype]
        if isinstance(recipe, InsideExpert):
            maker = self._layer(recipe.layer, recipe.plan)
            return (maker.shared if recipe.expert is None else maker.stored(recipe.expert))[target.role]
        if isinstance(recipe, SlimmedLinear):
            return self._linears(recipe.layer, recipe.plan).tensor(target.role)
        if isinstance(recipe, ScaledInputs):
            return self._scaled(transfer, recipe).to(dtype)
        if isinstance(recipe, MergedExpert):
            if transfer.source.role in EXPERT_BIAS_ROLES:
                return self._merged_bias(transfer.source, recipe).to(dtype)
            matrices = self._merge(transfer.source.layer, recipe.merge)
            return matrices[EXPERT_ROLES.index(transfer.source.role)].to(dtype)
        if isinstance(recipe, Dequantised):
            return self._checkpoint.read(transfer.source).to(dtype)
        if isinstance(recipe, AveragedRows):
            return averaged(recipe, self._checkpoint.read(transfer.source)).to(dtype)
        assert isinstance(recipe, Constants)
        values = constants(self._moments, self._checkpoint.inventory, recipe.layer, recipe.experts)
        return torch.from_numpy(values).to(dtype)

    def expert(self, layer: int, plan: LayerPlan, expert: int) -> ExpertMatrices:
        """Return the matrices that what is stored of an expert stands for, on the inputs that it has in the source.

        Args:
            layer: its layer in the source.
            plan: what becomes of the layer.
            expert: its number in the source.
        """
        maker = self._layer(layer, plan)
        made = maker.whole(expert)
        if plan.bits is None or plan.bits.kernel != "awq":
            return made
        scale_D = maker.input_scale_D.to(made.gate_FD)  # the norm before the experts is divided by it
        return ExpertMatrices(made.gate_FD / scale_D, made.up_FD / scale_D, made.down_DF)

    def bytes_of(self, transfer: Transfer) -> memoryview:
        """Return ``tensor(transfer)`` as bytes."""
        flat: Any = self.tensor(transfer).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return memoryview(flat)

    def _layer(self, layer: int, plan: LayerPlan) -> LayerMaker:
        """Return the maker of a layer; the tensors of a layer are asked for in a row."""
        if self._maker is None or self._maker[0] != layer:
            self._maker = None  # frees the one before
            inventory = self._checkpoint.inventory
            entries = expert_entries(inventory, layer)
            dtypes = [TORCH_DTYPES[entry.dtype] for entry in entries[0]]

            def norm() -> Tensor:
                entry = next(inventory.layers[layer].with_role("norm.mlp"))
                return self._checkpoint.read(entry).to(self._device)

            beside = partial(self._linears, layer, plan) if plan.linear else None
            read = self._reader(layer)
            self._maker = layer, LayerMaker(plan, layer, inventory, read, self._moments, dtypes, norm, beside)
        return self._maker[1]

    def _linears(self, layer: int, plan: LayerPlan) -> LinearMaker:
        """Return the maker of the linear layers beside the experts of a layer."""
        if self._linear_maker is None or self._linear_maker[0] != layer:
            inventory = self._checkpoint.inventory

            def read(entry: TensorEntry) -> Tensor:
                return self._checkpoint.read(entry).to(self._device)

            def expert_scale() -> Tensor:
                return self._layer(layer, plan).input_scale_D

            self._linear_maker = layer, LinearMaker(plan, layer, inventory, read, self._moments, expert_scale)
        return self._linear_maker[1]

    def _scaled(self, transfer: Transfer, recipe: ScaledInputs) -> Tensor:
        source = transfer.source
        values = self._checkpoint.read(source, transfer.rows if recipe.rows is None else None)
        values = averaged(recipe.rows, values) if recipe.rows is not None else values
        wide = values if values.dtype == torch.float64 else values.float()
        return scaled(wide, source.role, self._layer(recipe.layer, recipe.plan).input_scale_D)

    def _merge(self, layer: int | None, merge: Merge) -> ExpertMatrices:
        """Return a merged expert; its three matrices are asked for in a row and computed once."""
        assert layer is not None
        if self._merged is None or self._merged[0] != (layer, merge):
            self._merged = None  # frees the one before
            self._merged = (layer, merge), merged(merge, lazily(self._reader(layer), merge.members))
        return self._merged[1]

    def _merged_bias(self, source: TensorEntry, recipe: MergedExpert) -> Tensor:
        assert source.layer is not None
        biases = [self._checkpoint.read(entry).to(self._device) for entry in recipe.sources]
        members = lazily(self._reader(source.layer), recipe.merge.members)
        return merged_bias(recipe.merge, members, biases, source.role != EXPERT_BIAS_ROLES[2])

    def _reader(self, layer: int) -> Read:
        """Return what reads an expert of a layer of the source."""
        entries = expert_entries(self._checkpoint.inventory, layer)
        return lambda expert: ExpertMatrices(*(self._checkpoint.read(e).to(self._device) for e in entries[expert]))


def scaled(values: Tensor, role: str, scale_D: Tensor) -> Tensor:
    """Return a norm's weight divided by the scale of the experts' inputs, or the columns of what reads it multiplied.

    In float32 or float64, whatever ``values`` are in: the scale itself must not be rounded to bfloat16, in memory or on disk.

    Args:
        values: weight of a norm, (D,), or matrix whose columns are inputs, (..., D).
        role: of the tensor in the inventory; ``norm.mlp`` is divided, every other one multiplied.
        scale_D: factor on each input of the experts.
    """
    wide = values.to(torch.promote_types(values.dtype, torch.float32))
    scale = scale_D.to(wide)
    return wide / scale if role == "norm.mlp" else wide * scale


def expert_entries(inventory: Inventory, layer: int) -> list[Sequence[TensorEntry]]:
    """Return gate, up and down of each whole expert of a layer."""
    found: dict[tuple[int | None, str], TensorEntry] = {
        (entry.expert, entry.role): entry for entry in inventory.layers[layer].with_role(*EXPERT_ROLES)
    }
    return [[found[expert, role] for role in EXPERT_ROLES] for expert in range(inventory.layers[layer].experts)]
