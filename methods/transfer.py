"""From a plan to tensors: which tensor of the source becomes which tensor of the result.

This one enumeration is what is counted (``methods.cost``) and what is written (``bench.apply``), so the two agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from methods.inventory import MLP_PREFIXES, ROUTER_ROLES, Inventory, LayerInventory, TensorEntry
from methods.plan import LayerPlan, Plan


@dataclass(frozen=True, slots=True)
class Transfer:
    """``target`` is ``source`` copied, or only its ``rows`` (indices of the first axis, ascending)."""

    source: TensorEntry
    target: TensorEntry
    rows: tuple[int, ...] | None = None


def transfers(plan: Plan, inventory: Inventory) -> Iterator[Transfer]:
    """Yield every tensor of the result with its source, outer tensors first, then layer by layer."""
    for entry in inventory.outer:
        yield Transfer(entry, entry)
    number = 0
    for layer_plan, layer in zip(plan.layers, inventory.layers, strict=True):
        if layer_plan.drop == "block":
            continue
        yield from _layer_transfers(layer_plan, layer, number)
        number += 1


def result(plan: Plan, inventory: Inventory) -> Inventory:
    """Return the inventory of the compressed checkpoint, with decoder layers and experts renumbered from 0."""
    layers: list[LayerInventory] = []
    for layer_plan, layer in zip(plan.layers, inventory.layers, strict=True):
        if layer_plan.drop == "block":
            continue
        tensors = tuple(transfer.target for transfer in _layer_transfers(layer_plan, layer, len(layers)))
        if layer_plan.drop == "moe":
            layers.append(LayerInventory(mlp="none", experts=0, top_k=0, tensors=tensors))
            continue
        experts = layer.experts if layer_plan.experts is None else len(layer_plan.experts)
        top_k = layer_plan.top_k or min(layer.top_k, experts)
        layers.append(LayerInventory(mlp=layer.mlp, experts=experts, top_k=top_k, tensors=tensors))
    return inventory.with_layers(tuple(layers))


def _layer_transfers(plan: LayerPlan, layer: LayerInventory, number: int) -> Iterator[Transfer]:
    """Yield the transfers of one surviving decoder layer, which becomes layer ``number``."""
    position = None if plan.experts is None else {expert: new for new, expert in enumerate(plan.experts)}
    for entry in layer.tensors:
        if plan.drop == "moe" and (entry.role == "norm.mlp" or entry.role.startswith(MLP_PREFIXES)):
            continue
        target = replace(entry, layer=number)
        if position is None:
            yield Transfer(entry, target)
        elif entry.expert is not None:
            if entry.expert in position:
                yield Transfer(entry, replace(target, expert=position[entry.expert]))
        elif entry.role in ROUTER_ROLES:
            rows = tuple(position)
            yield Transfer(entry, replace(target, shape=(len(rows), *entry.shape[1:])), rows)
        else:
            yield Transfer(entry, target)
