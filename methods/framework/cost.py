"""Cost of a plan: parameters, active parameters, bytes and FLOPs, from shapes alone.

FLOPs of one forward of T tokens at batch size 1 are 2 T P + 2 T^2 H (d_qk + d_v) for each attention layer, where P are the
weights that one token multiplies (attention, router, K routed and all shared experts, dense MLP, output head; no
embedding, no norm) and H d the heads times the head dimension. No causal halving: this is the convention
of the holistic study's Table 3 (arXiv 2406.02500), which it reproduces.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from operator import attrgetter

from methods.framework.forms import SHARED_PREFIX
from methods.framework.inside_fit import left_linears, stays
from methods.framework.inventory import CONSTANT_ROLE, EXPERT_ROLES, Inventory, LayerInventory, TensorEntry
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stored_sizes import Sizes, expert_sizes
from methods.framework.transfer import beside_experts, experts_left


@dataclass(frozen=True, slots=True)
class Cost:
    """What a checkpoint costs.

    Args:
        experts: routed experts of the whole model.
        channels: hidden channels of all routed experts together.
        routed_parameters: weights of the routed experts, and of what they share; of packed matrices the weights they stand for.
        parameters: all weights; a tied output head counts once.
        active_parameters: ``parameters`` less the routed experts that a token does not use. Where several router rows lead
            to one expert this is an upper bound: a token may choose the same expert twice, or a constant vector.
        bytes: tensor bytes on disk, without file headers.
        flops: multiply-adds times two of one 2048-token forward at batch size 1.
    """

    experts: int
    channels: int
    routed_parameters: int
    parameters: int
    active_parameters: int
    bytes: int
    flops: int


@dataclass(frozen=True, slots=True)
class Ratios:
    """Fractions removed, one for each meaning of "compression ratio" in the literature; 0 for the source itself.

    Args:
        count: of routed experts (NAEE, REAP, HC-SMoE, DiEP).
        expert: of routed-expert parameters (MoE-I2).
        total: of all parameters (D2-MoE, MoBE).
        bytes: of checkpoint bytes (holistic study, with quantisation).
        channels: of the routed experts' hidden channels (HEAPr, CAMERA).
    """

    count: float
    expert: float
    total: float
    bytes: float
    channels: float


def cost(plan: Plan, inventory: Inventory, tokens: int = 2048) -> Cost:
    """Return the cost of the checkpoint that ``plan`` makes of ``inventory``.

    Args:
        plan: in the coordinates of ``inventory``.
        inventory: the source.
        tokens: length of the sequence whose FLOPs are counted.
    """
    return _total(plan.layers, inventory, tokens)


def cost_of(inventory: Inventory, tokens: int = 2048) -> Cost:
    """Return the cost of a checkpoint as it is; ``tokens`` is the length of the forward that FLOPs are counted for."""
    return _total([LayerPlan()] * len(inventory.layers), inventory, tokens)


def layer_costs(inventory: Inventory, tokens: int = 2048) -> tuple[Cost, ...]:
    """Return the part of each decoder layer in the cost of a checkpoint; they add up, with what lies outside of layers.

    Args:
        inventory: the checkpoint.
        tokens: length of the sequence whose FLOPs are counted.
    """
    return _layers([LayerPlan()] * len(inventory.layers), inventory, tokens)


def _total(plans: Sequence[LayerPlan], inventory: Inventory, tokens: int) -> Cost:
    outer = _cost(inventory.outer, Sizes(), inventory.vocab * inventory.hidden * 2 * tokens)
    added = zip(*(_quantities(one) for one in (outer, *_layers(plans, inventory, tokens))), strict=True)
    return Cost(*map(sum, added))


def _layers(plans: Sequence[LayerPlan], inventory: Inventory, tokens: int) -> tuple[Cost, ...]:
    """Return the cost of each decoder layer that is left."""
    attention = inventory.attention
    quadratic = 2 * tokens**2 * attention.heads * (attention.qk_head_dim + attention.v_head_dim)
    return tuple(
        _layer_cost(plan, layer, index, tokens, quadratic)
        for index, (plan, layer) in enumerate(zip(plans, inventory.layers, strict=True))
        if plan.drop != "block"
    )


_quantities = attrgetter(*(field.name for field in fields(Cost)))


def _layer_cost(plan: LayerPlan, layer: LayerInventory, index: int, tokens: int, quadratic: int) -> Cost:
    """Return the cost of what a plan makes of a layer.

    Args:
        plan: of the layer, which does not drop it.
        layer: the source.
        index: of the layer.
        tokens: length of the sequence whose FLOPs are counted.
        quadratic: FLOPs of attention that grow with its square.
    """
    beside = tuple(beside_experts(plan, layer, index))
    own = expert_sizes(plan, layer)
    experts, top_k = experts_left(plan, layer) if layer.mlp == "moe" else (0, 0)
    found = _cost(beside, own, 2 * tokens * _active_matrices(beside, own, experts, top_k) + quadratic)
    idle = own.parameters * max(0, experts - top_k) // experts if experts else 0
    return replace(found, experts=experts, active_parameters=found.parameters - idle)


def _cost(entries: Sequence[TensorEntry], own: Sizes, flops: int) -> Cost:
    """Return the cost of tensors that are all used by every token.

    Args:
        entries: those that belong to no single expert.
        own: of the experts.
        flops: of all.
    """
    parameters = own.parameters + sum(entry.parameters for entry in entries)
    return Cost(
        experts=0,
        channels=own.channels,
        routed_parameters=own.parameters + sum(entry.parameters for entry in entries if _is_routed(entry)),
        parameters=parameters,
        active_parameters=parameters,
        bytes=own.bytes + sum(entry.nbytes for entry in entries),
        flops=flops,
    )


def zeros(plan: Plan, inventory: Inventory) -> int:
    """Return how many weights of the result ``plan`` makes zero; they are stored, so no other cost falls with them."""
    total = 0
    for layer_plan, layer in zip(plan.layers, inventory.layers, strict=True):
        if layer_plan.sparsity is None:
            continue
        share, kept = layer_plan.sparsity.share, stays(layer_plan, layer)
        if layer_plan.sparsity.scope == "all":
            total += sum(entry.shape[0] * int(entry.shape[1] * share) for entry in left_linears(layer_plan, layer))
        for entry in layer.with_role(*EXPERT_ROLES) if layer_plan.drop == "none" else ():
            if entry.expert not in kept:
                continue
            outputs, inputs = entry.shape
            if layer_plan.channels is not None:
                width = len(layer_plan.channels[kept.index(entry.expert)])
                outputs, inputs = (outputs, width) if entry.role == "expert.down" else (width, inputs)
            total += outputs * int(inputs * share)
    return total


def ratios(before: Cost, after: Cost) -> Ratios:
    """Return the fractions removed between two costs."""

    def removed(a: int, b: int) -> float:
        return 1.0 - b / a if a else 0.0

    return Ratios(
        count=removed(before.experts, after.experts),
        expert=removed(before.routed_parameters, after.routed_parameters),
        total=removed(before.parameters, after.parameters),
        bytes=removed(before.bytes, after.bytes),
        channels=removed(before.channels, after.channels),
    )


def _is_routed(entry: TensorEntry) -> bool:
    return entry.role.startswith("expert.")


def _active_matrices(beside: Sequence[TensorEntry], own: Sizes, experts: int, top_k: int) -> int:
    """Return the elements of the matrices that one token multiplies in a layer.

    A base multiplies each token once: gate and up before, down after the weighted sum over experts. Of shared bases each
    expert of a token multiplies its own mixture, the size of one; making the mixture depends on no token and is not counted.

    Args:
        beside: tensors that belong to no single expert.
        own: of the experts.
        experts: how many there are.
        top_k: how many a token takes.
    """
    fixed = sum(entry.parameters for entry in beside if _is_fixed_matrix(entry))
    active = (own.parameters - own.mixtures) * top_k // experts if experts else 0
    shared = [entry for entry in beside if entry.role.startswith(SHARED_PREFIX)]
    bases = sum(entry.numel // entry.shape[0] * top_k for entry in shared if len(entry.shape) == 3)
    return fixed + active + bases + sum(entry.numel for entry in shared if len(entry.shape) == 2)


def _is_fixed_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2 and not _is_routed(entry) and entry.role != CONSTANT_ROLE
