"""From a plan to tensors: which tensors of the source become which tensor of the result.

This one enumeration is what is counted (``methods.framework.cost``) and what is written (``bench.applying.apply``), so the two
agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from methods.framework.forms import parts, restricted, shared
from methods.framework.inside_fit import form_of
from methods.framework.inventory import (
    CONSTANT_ROLE,
    EXPERT_ROLES,
    MLP_PREFIXES,
    ROUTER_ROLES,
    ExpertForm,
    Inventory,
    LayerInventory,
    TensorEntry,
)
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan


@dataclass(frozen=True, slots=True)
class MergedExpert:
    """The target is one matrix of a merged expert; ``sources`` are that matrix of each member, in their order."""

    merge: Merge
    sources: tuple[TensorEntry, ...]


@dataclass(frozen=True, slots=True)
class InsideExpert:
    """The target is stored of expert ``expert`` of decoder layer ``layer`` of the source, which ``plan`` changes inside.

    ``expert`` is None for what all experts of the layer share. ``plan`` also says what the expert is merged from before.
    """

    layer: int
    expert: int | None
    plan: LayerPlan


@dataclass(frozen=True, slots=True)
class AveragedRows:
    """Row i of the target is the average of ``members[i]`` (row indices of the source) with ``weights[i]``, which add up to 1."""

    members: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class ScaledInputs:
    """The target sees inputs that decoder layer ``layer`` of the source scales for its experts (AWQ), or scales them.

    ``rows`` says how its rows are averaged before; None: they are not.
    """

    layer: int
    plan: LayerPlan
    rows: AveragedRows | None = None


SCALED_ROLES = ("norm.mlp", "router.weight", "shared.gate", "shared.up", "shared.scalar_gate")
"""Roles of the tensors that a scale of the experts' inputs reaches: the norm that gives them, and everything else that reads
what the norm gives."""


@dataclass(frozen=True, slots=True)
class Constants:
    """The target holds the mean outputs of ``experts`` of decoder layer ``layer`` of the source, one row each."""

    layer: int
    experts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Transfer:
    """One tensor of the result.

    Args:
        source: the tensor that it is made of; of a merged expert, the one of ``into``.
        target: the result.
        rows: indices of the source's first axis, ascending; None takes all.
        recipe: how it is computed; None where bytes are copied.
    """

    source: TensorEntry
    target: TensorEntry
    rows: tuple[int, ...] | None = None
    recipe: MergedExpert | InsideExpert | ScaledInputs | AveragedRows | Constants | None = None


def transfers(plan: Plan, inventory: Inventory) -> Iterator[Transfer]:
    """Yield every tensor of the result with its source, outer tensors first, then layer by layer."""
    for entry in inventory.outer:
        yield Transfer(entry, entry)
    number = 0
    for index, (layer_plan, layer) in enumerate(zip(plan.layers, inventory.layers, strict=True)):
        if layer_plan.drop == "block":
            continue
        yield from _layer_transfers(layer_plan, layer, index, number)
        number += 1


def result(plan: Plan, inventory: Inventory) -> Inventory:
    """Return the inventory of the compressed checkpoint, with decoder layers and experts renumbered from 0."""
    layers: list[LayerInventory] = []
    for index, (layer_plan, layer) in enumerate(zip(plan.layers, inventory.layers, strict=True)):
        if layer_plan.drop == "block":
            continue
        tensors = tuple(transfer.target for transfer in _layer_transfers(layer_plan, layer, index, len(layers)))
        if layer_plan.drop == "moe":
            layers.append(LayerInventory(mlp="none", experts=0, top_k=0, tensors=tensors))
            continue
        experts = layer.experts if layer_plan.experts is None else len(layer_plan.experts)
        rows = layer.rows if layer_plan.rows is None else len(layer_plan.rows)
        mapped = layer.expert_map if layer_plan.experts is None else layer_plan.expert_map
        constants = layer.constants if layer_plan.experts is None else len(layer_plan.constants)
        top_k = layer_plan.top_k or min(layer.top_k, rows)
        form = form_of(layer_plan, layer) or restricted(layer.form, layer_plan.experts)
        layers.append(LayerInventory(layer.mlp, experts, top_k, tensors, mapped, constants, form))
    return inventory.with_layers(tuple(layers))


def _layer_transfers(plan: LayerPlan, layer: LayerInventory, index: int, number: int) -> Iterator[Transfer]:
    """Yield the transfers of surviving decoder layer ``index``, which becomes layer ``number``."""
    position = None if plan.experts is None else {expert: new for new, expert in enumerate(plan.experts)}
    merges = {merge.into: merge for merge in plan.merges}
    matrices = {(e.role, e.expert): e for e in layer.with_role(*EXPERT_ROLES)} if merges else {}
    form = form_of(plan, layer)
    scaled = plan.bits is not None and plan.bits.kernel == "awq"
    begun = False
    for entry in layer.tensors:
        if plan.drop == "moe" and (entry.role == "norm.mlp" or entry.role.startswith(MLP_PREFIXES)):
            continue
        target = replace(entry, layer=number)
        if entry.expert is not None and (position is None or entry.expert in position):
            if form is not None and not begun:
                begun = True
                yield from _shared(plan, layer, form, index, number)
            merge = merges.get(entry.expert)
            place = entry.expert if position is None else position[entry.expert]
            whole = replace(target, expert=place)
            if plan.inside:
                inside = InsideExpert(index, entry.expert, plan)
                for part in parts(whole, form or ExpertForm()):
                    yield Transfer(entry, part, recipe=inside)
            elif merge is not None:
                recipe = MergedExpert(merge, tuple(matrices[entry.role, m] for m in merge.members))
                yield Transfer(entry, whole, recipe=recipe)
            else:
                yield Transfer(entry, whole)
        elif entry.expert is not None:
            continue
        elif position is not None and entry.role in ROUTER_ROLES:
            rows = plan.rows
            assert rows is not None
            target = replace(target, shape=(len(rows), *entry.shape[1:]))
            averaged = averaged_rows(rows, plan.merges) if plan.router == "mean" else None
            reached = scaled and entry.role in SCALED_ROLES
            yield Transfer(entry, target, rows, ScaledInputs(index, plan, averaged) if reached else averaged)
            if entry.role == "router.weight" and plan.constants:
                yield _constants(plan, entry, index, number)
        elif scaled and entry.role in SCALED_ROLES:
            yield Transfer(entry, target, recipe=ScaledInputs(index, plan))
        else:
            yield Transfer(entry, target)


def _shared(plan: LayerPlan, layer: LayerInventory, form: ExpertForm, index: int, number: int) -> Iterator[Transfer]:
    """Yield the transfers of what the experts of a layer share."""
    whole = [replace(entry, layer=number) for entry in layer.with_role(*EXPERT_ROLES)]
    source = next(layer.with_role(*EXPERT_ROLES))
    for entry in shared(whole, form):
        yield Transfer(source, entry, recipe=InsideExpert(index, None, plan))


def averaged_rows(rows: Sequence[int], merges: Sequence[Merge]) -> AveragedRows:
    """Return how ``rows`` of a router become the averages over the members of ``merges``; weights add up to 1."""
    into = {merge.into: merge for merge in merges}
    members, weights = [], []
    for row in rows:
        merge = into.get(row)
        members.append(merge.members if merge else (row,))
        total = sum(merge.weights) if merge else 1.0
        weights.append(tuple(weight / total for weight in merge.weights) if merge else (1.0,))
    return AveragedRows(tuple(members), tuple(weights))


def _constants(plan: LayerPlan, router: TensorEntry, index: int, number: int) -> Transfer:
    """Return the transfer of the constant vectors, which stand beside the router of the layer."""
    shape = (len(plan.constants), router.shape[1])
    template = constant_template(router)
    target = replace(router, template=template, role=CONSTANT_ROLE, shape=shape, layer=number)
    return Transfer(router, target, recipe=Constants(index, plan.constants))


def constant_template(router: TensorEntry) -> str:
    """Return the name of a layer's constant vectors, from that of its router's weight."""
    return router.template.rsplit(".", 2)[0] + ".constant_experts"
