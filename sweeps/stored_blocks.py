"""MoE blocks in the form in which a plan stores them, for the time that they take.

In memory a search computes with whole matrices (``bench.applying.in_memory``): factors as their product, cut channels as zeros.
That gives the right losses and the time of the source. Here factors are factors and narrow experts are narrow, as in the
checkpoint and in the plug-in of vLLM. The values of new matrices are random, since no time depends on them, but routers and
what stays as it is are the source's, since time depends on which experts are reached.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from bench.applying.in_memory import realised
from bench.applying.resident_layer import ResidentLayer
from bench.applying.sliced_router import of_rows
from bench.experts.grouped import preferred
from bench.experts.stored_module import CompressedExperts
from bench.models.load import DroppedBlock, built_block
from methods.framework.inventory import Inventory, LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.transfer import result

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def stored_block(model: PreTrainedModel, inventory: Inventory, index: int, plan: LayerPlan) -> nn.Module:
    """Return what stands in the place of a layer's MoE block once ``plan`` is written.

    Args:
        model: the uncompressed model.
        inventory: its inventory.
        index: number of the decoder layer, in the source.
        plan: what becomes of it; the block of a layer that goes as a whole is one that adds nothing.
    """
    if plan.drop != "none":
        return DroppedBlock()
    resident = ResidentLayer(model, inventory, index)
    alone = inventory.with_layers((resident.layer,))
    own = Plan.of(alone, [plan])
    if not own.stages:
        return resident.block
    layer = result(own, alone).layers[0]
    with torch.device(model.device), no_init_weights():
        block = built_block(type(resident.block), resident.family, layer, _config_of(resident, layer), model.config)
    _give_values(block, resident, own.layers[0])
    experts = getattr(block, resident.family.experts_module(index).rpartition(".")[2])
    if isinstance(experts, CompressedExperts):
        experts.finish(grouped=all(map(preferred, experts.parameters())))
    return block.eval()


@contextmanager
def stored_form(model: PreTrainedModel, inventory: Inventory, plan: Plan) -> Iterator[PreTrainedModel]:
    """Let ``model`` take the time of the checkpoint of ``plan`` for the length of a ``with`` block; its outputs mean nothing.

    Args:
        model: the uncompressed model.
        inventory: its inventory.
        plan: in the coordinates of ``inventory``.
    """
    dropped = [LayerPlan(drop=layer.drop) for layer in plan.layers]
    with ExitStack() as undo:
        for index in inventory.moe_layers:
            if plan.layers[index].drop == "none":
                resident = ResidentLayer(model, inventory, index)
                path = resident.family.mlp_modules(index)[1]
                block, before = stored_block(model, inventory, index, plan.layers[index]), resident.block
                undo.callback(model.set_submodule, path, before)
                model.set_submodule(path, block)
        undo.enter_context(realised(model, inventory, Plan.of(inventory, dropped)))
        yield model


def _config_of(resident: ResidentLayer, layer: LayerInventory) -> Any:
    """Return the config of a model whose layers are all like ``layer``."""
    config, keys = copy.copy(resident.model.config), resident.family.file.keys
    for name, value in (*((key, layer.rows) for key in keys.experts), *((key, layer.top_k) for key in keys.top_k)):
        setattr(config, name, value)
    return config


@torch.no_grad()
def _give_values(block: nn.Module, resident: ResidentLayer, plan: LayerPlan) -> None:
    """Give a new block the source's router and shared experts, in the source's types, and random matrices for the rest."""
    known = dict(resident.block.state_dict(keep_vars=True))
    above, router = resident.family.mlp_modules(resident.index)[1], resident.family.router_module(resident.index)
    inside = f"{router.removeprefix(f'{above}.')}."
    of_router = {inside + name: role for name, role in resident.family.router_attributes().items()}
    rows = None if plan.rows is None else torch.tensor(plan.rows, device=resident.model.device)
    weights = next(iter(known.values())).dtype
    for name, tensor in (*block.named_parameters(), *block.named_buffers()):
        source = known.get(name)
        if source is not None and rows is not None and name in of_router:
            source = of_rows(source, rows, of_router[name])
        if source is not None and source.shape == tensor.shape:
            tensor.data = source.detach().clone()
        elif tensor.is_floating_point():
            tensor.data = _random(tensor.to(weights))
        else:
            tensor.zero_()


def _random(tensor: Tensor) -> Tensor:
    """Return ``tensor`` filled so that products keep the size of their inputs; tiny numbers would be slow."""
    return tensor.normal_(std=max(1, tensor.shape[-1]) ** -0.5)
