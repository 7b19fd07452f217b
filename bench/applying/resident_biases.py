"""Biases of merged experts, written into a resident model in the place of those of the experts that stay."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from bench.applying.layer_maker import Read
from bench.applying.resident_layer import ResidentLayer
from bench.experts.lazy import lazily
from methods.framework.inventory import EXPERT_BIAS_ROLES
from methods.framework.layer_plan import LayerPlan
from methods.kernels.merging import merged_bias


@torch.no_grad()
def overwrite_biases(undo: ExitStack, resident: ResidentLayer, plan: LayerPlan, read: Read) -> None:
    """Write the biases of merged experts in their places, and register what stood there.

    Args:
        undo: takes what stood there.
        resident: the layer.
        plan: what becomes of it.
        read: gives the matrices of experts of the source.
    """
    for role in EXPERT_BIAS_ROLES if resident.layer.biased else ():
        places = {entry.expert: resident.tensor(entry) for entry in resident.layer.with_role(role)}
        source = {expert: place.clone() for expert, place in places.items()}
        for merge in plan.merges:
            biases = [source[member] for member in merge.members]
            bias = merged_bias(merge, lazily(read, merge.members), biases, role != EXPERT_BIAS_ROLES[2])
            undo.callback(_restore, places[merge.into], source[merge.into])
            places[merge.into].copy_(bias.to(resident.dtypes[role]))


@torch.no_grad()
def _restore(place: torch.Tensor, value: torch.Tensor) -> None:
    place.copy_(value)
