"""From a plan to tensors: which tensors of the source become which tensor of the result.

This one enumeration is what is counted (``methods.framework.cost``) and what is written (``bench.applying.apply``), so the two
agree.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from methods.framework.forms import linear_parts, parts, restricted, shared
from methods.framework.inside_fit import form_of, linear_bits_of, packing_of, stays
from methods.framework.inventory import (
    CONSTANT_ROLE,
    EXPERT_BIAS_ROLES,
    EXPERT_ROLES,
    MLP_NORMS,
    MLP_PREFIXES,
    ROUTER_ROLES,
    ExpertForm,
    Inventory,
    LayerInventory,
    TensorEntry,
)
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.linears import LINEAR_ROLES, scaled_beside
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
class SlimmedLinear:
    """The target is stored of a linear layer beside the routed experts of decoder layer ``layer`` of the source, or follows it.

    A norm, or the bias of rows, follows where the inputs of linear layers are scaled.
    """

    layer: int
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
class Dequantised:
    """The target holds, in its own type, the values that the codes and scales of the source stand for."""


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
    recipe: (
        MergedExpert | InsideExpert | SlimmedLinear | ScaledInputs | AveragedRows | Constants | Dequantised | None
    ) = None


def transfers(plan: Plan, inventory: Inventory) -> Iterator[Transfer]:
    """Yield every tensor of the result with its source, outer tensors first, then layer by layer."""
    for entry in inventory.outer:
        yield Transfer(entry, entry)
    number = 0
    for index, (layer_plan, layer) in enumerate(zip(plan.layers, inventory.layers, strict=True)):
        if layer_plan.drop == "block":
            continue
        yield from _Surviving(layer_plan, layer, index, number).transfers()
        number += 1


def result(plan: Plan, inventory: Inventory) -> Inventory:
    """Return the inventory of the compressed checkpoint, with decoder layers and experts renumbered from 0."""
    layers: list[LayerInventory] = []
    for index, (layer_plan, layer) in enumerate(zip(plan.layers, inventory.layers, strict=True)):
        if layer_plan.drop == "block":
            continue
        surviving = _Surviving(layer_plan, layer, index, len(layers))
        tensors = tuple(transfer.target for transfer in surviving.transfers())
        linear_bits = linear_bits_of(layer_plan, layer)
        if layer_plan.drop == "moe":
            layers.append(LayerInventory("none", 0, 0, tensors, linear_bits=linear_bits, alone=layer.alone))
            continue
        experts, top_k = experts_left(layer_plan, layer)
        mapped = layer.expert_map if layer_plan.experts is None else layer_plan.expert_map
        constants = layer.constants if layer_plan.experts is None else len(layer_plan.constants)
        form = form_of(layer_plan, layer) or restricted(layer.form, layer_plan.experts)
        made = LayerInventory(layer.mlp, experts, top_k, tensors, mapped, constants, form, linear_bits, layer.alone)
        layers.append(made)
    return inventory.with_layers(tuple(layers))


def beside_experts(plan: LayerPlan, layer: LayerInventory, index: int) -> Iterator[TensorEntry]:
    """Yield what the result of a layer holds that belongs to no single expert, numbered as in the source.

    Args:
        plan: of the layer, which does not drop it.
        layer: the source.
        index: of the layer.
    """
    return (transfer.target for transfer in _Surviving(plan, layer, index, index).beside())


def experts_left(plan: LayerPlan, layer: LayerInventory) -> tuple[int, int]:
    """Return how many experts the result of a layer has, and how many a token takes; none where they are dropped."""
    if plan.drop == "moe":
        return 0, 0
    rows = layer.rows if plan.rows is None else len(plan.rows)
    experts = layer.experts if plan.experts is None else len(plan.experts)
    return experts, plan.top_k or min(layer.top_k, rows)


@dataclass(frozen=True)
class _Surviving:
    """A decoder layer that stays: layer ``index`` of the source becomes layer ``number`` of the result."""

    plan: LayerPlan
    layer: LayerInventory
    index: int
    number: int

    def transfers(self) -> Iterator[Transfer]:
        """Yield what becomes of each tensor of the layer, in the order of the source."""
        begun = False
        for entry in self.layer.tensors:
            if self._dropped(entry):
                continue
            if entry.expert is None:
                yield from self._beside_experts(entry)
            elif entry.expert in self._places:
                if not begun:
                    yield from self._shared()
                    begun = True
                yield from self._of_expert(entry, self._places[entry.expert])

    def beside(self) -> Iterator[Transfer]:
        """Yield what becomes of the tensors that belong to no single expert."""
        for entry in self.layer.beside:
            if not self._dropped(entry):
                yield from self._beside_experts(entry)
        if self.plan.drop == "none" and self.layer.kinds:
            yield from self._shared()

    def _dropped(self, entry: TensorEntry) -> bool:
        return self.plan.drop == "moe" and (entry.role in MLP_NORMS or entry.role.startswith(MLP_PREFIXES))

    @cached_property
    def _places(self) -> dict[int, int]:
        """Place in the result of each expert that stays."""
        return {expert: place for place, expert in enumerate(stays(self.plan, self.layer))}

    @cached_property
    def _form(self) -> ExpertForm | None:
        return form_of(self.plan, self.layer)

    @cached_property
    def _slimmed(self) -> frozenset[str]:
        """Roles of the linear layers beside the experts that are computed, and of what follows them."""
        if not self.plan.linear:
            return frozenset()
        bits = self.plan.bits
        scaled = bits is not None and bits.scope == "all" and bits.kernel == "awq"
        return frozenset((*LINEAR_ROLES, *(scaled_beside(self.layer) if scaled else ())))

    @cached_property
    def _merges(self) -> dict[int, Merge]:
        return {merge.into: merge for merge in self.plan.merges}

    @cached_property
    def _matrices(self) -> dict[tuple[str, int | None], TensorEntry]:
        return {(entry.role, entry.expert): entry for entry in self.layer.with_role(*EXPERT_ROLES, *EXPERT_BIAS_ROLES)}

    def _of_expert(self, entry: TensorEntry, place: int) -> Iterator[Transfer]:
        """Yield what is stored of a tensor of an expert, which becomes expert number ``place``."""
        whole = replace(entry, layer=self.number, expert=place)
        if self.plan.merges or self.plan.inside:
            whole = replace(whole, stored=None)  # readers take the experts of a layer in one type
        if self.plan.inside:
            recipe = InsideExpert(self.index, entry.expert, self.plan)
            for part in parts(whole, self._form or ExpertForm()):
                yield Transfer(entry, part, recipe=recipe)
        elif (merge := self._merges.get(entry.expert)) is not None:  # type: ignore[arg-type]  # it is an expert's
            sources = tuple(self._matrices[entry.role, member] for member in merge.members)
            yield Transfer(entry, whole, recipe=MergedExpert(merge, sources))
        else:
            yield Transfer(entry, whole, recipe=None if whole.stored == entry.stored else Dequantised())

    def _shared(self) -> Iterator[Transfer]:
        """Yield what the experts of the layer share in their new form."""
        rank = self.plan.rank
        if (self.plan.bases is None and (rank is None or rank.base is None)) or self._form is None:
            return
        first = self.layer.kinds[0].tensors
        whole = [replace(entry, layer=self.number, stored=None) for entry in first if entry.role in EXPERT_ROLES]
        source = next(self.layer.with_role(*EXPERT_ROLES))
        for entry in shared(whole, self._form):
            yield Transfer(source, entry, recipe=InsideExpert(self.index, None, self.plan))

    def _beside_experts(self, entry: TensorEntry) -> Iterator[Transfer]:
        """Yield what becomes of a tensor that belongs to no single expert, and the constants after the router's weight."""
        plan, rows = self.plan, self.plan.rows
        target = entry if entry.layer == self.number else replace(entry, layer=self.number)
        if entry.role in self._slimmed:
            for part in linear_parts(target, packing_of(plan) if plan.bits and plan.bits.scope == "all" else None):
                yield Transfer(entry, part, recipe=SlimmedLinear(self.index, plan))
            return
        scaled = plan.bits is not None and plan.bits.kernel == "awq" and entry.role in SCALED_ROLES
        if rows is None or entry.role not in ROUTER_ROLES:
            yield Transfer(entry, target, recipe=ScaledInputs(self.index, plan) if scaled else None)
            return
        target = replace(target, shape=(len(rows), *entry.shape[1:]))
        averaged = averaged_rows(rows, plan.merges) if plan.router == "mean" else None
        yield Transfer(entry, target, rows, ScaledInputs(self.index, plan, averaged) if scaled else averaged)
        if entry.role == "router.weight" and plan.constants:
            yield self._constants(entry)

    def _constants(self, router: TensorEntry) -> Transfer:
        """Return the transfer of the constant vectors, which stand beside the router of the layer."""
        shape = (len(self.plan.constants), router.shape[1])
        template = constant_template(next(entry for entry in self.layer.tensors if entry.expert is not None))
        target = replace(router, template=template, role=CONSTANT_ROLE, shape=shape, layer=self.number)
        return Transfer(router, target, recipe=Constants(self.index, self.plan.constants))


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


def constant_template(expert: TensorEntry) -> str:
    """Return the name of a layer's constant vectors, from that of a tensor of one of its experts: beside all of them."""
    return expert.template.partition(".{expert}.")[0].rpartition(".")[0] + ".constant_experts"
