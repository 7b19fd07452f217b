"""Cost of a plan: parameters, active parameters, bytes and FLOPs, from shapes alone.

FLOPs of one forward of T tokens at batch size 1 are 2 T P + 2 T^2 H (d_qk + d_v) for each attention layer, where P are the
weights that one token multiplies (attention, router, K routed and all shared experts, dense MLP, output head; no
embedding, no norm) and H d the heads times the head dimension. No causal halving: this is the convention
of the holistic study's Table 3 (arXiv 2406.02500), which it reproduces.
"""

from __future__ import annotations

from dataclasses import dataclass

from methods.inventory import CONSTANT_ROLE, EXPERT_ROLES, Inventory, LayerInventory, TensorEntry
from methods.plan import Plan
from methods.transfer import result


@dataclass(frozen=True, slots=True)
class Cost:
    """What a checkpoint costs.

    Args:
        experts: routed experts of the whole model.
        channels: hidden channels of all routed experts together.
        routed_parameters: weights of the routed experts.
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
    """Return the cost of the checkpoint that ``plan`` makes of ``inventory``."""
    return cost_of(result(plan, inventory), tokens)


def cost_of(inventory: Inventory, tokens: int = 2048) -> Cost:
    """Return the cost of a checkpoint as it is; ``tokens`` is the length of the forward that FLOPs are counted for."""
    entries = list(inventory.tensors())
    routed = sum(entry.numel for entry in entries if entry.role in EXPERT_ROLES)
    parameters = sum(entry.numel for entry in entries)
    idle = sum(_routed(layer) * max(0, layer.experts - layer.top_k) // layer.experts for layer in _moe(inventory))
    return Cost(
        experts=inventory.num_experts,
        channels=sum(entry.shape[0] for entry in entries if entry.role == "expert.gate"),
        routed_parameters=routed,
        parameters=parameters,
        active_parameters=parameters - idle,
        bytes=sum(entry.nbytes for entry in entries),
        flops=flops(inventory, tokens),
    )


def zeros(plan: Plan, inventory: Inventory) -> int:
    """Return how many weights of the result ``plan`` makes zero; they are stored, so no other cost falls with them."""
    kept = iter(result(plan, inventory).layers)
    total = 0
    for layer_plan in plan.layers:
        if layer_plan.drop == "block":
            continue
        layer = next(kept)
        if layer_plan.sparsity is not None:
            share = layer_plan.sparsity.share
            total += sum(e.shape[0] * int(e.shape[1] * share) for e in layer.with_role(*EXPERT_ROLES))
    return total


def flops(inventory: Inventory, tokens: int) -> int:
    """Return the FLOPs of one forward of ``tokens`` tokens (see the module's formula)."""
    head = inventory.vocab * inventory.hidden
    attention = inventory.attention
    quadratic = 2 * tokens**2 * attention.heads * (attention.qk_head_dim + attention.v_head_dim)
    linear = head + sum(_active_matrices(layer) for layer in inventory.layers)
    return 2 * tokens * linear + quadratic * len(inventory.layers)


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


def _moe(inventory: Inventory) -> list[LayerInventory]:
    return [layer for layer in inventory.layers if layer.mlp == "moe"]


def _routed(layer: LayerInventory) -> int:
    """Weights of all routed experts of ``layer``."""
    return sum(entry.numel for entry in layer.with_role(*EXPERT_ROLES))


def _active_matrices(layer: LayerInventory) -> int:
    """Elements of the matrices that one token multiplies in ``layer``."""
    fixed = sum(entry.numel for entry in layer.tensors if _is_fixed_matrix(entry))
    return fixed + (_routed(layer) * layer.top_k // layer.experts if layer.experts else 0)


def _is_fixed_matrix(entry: TensorEntry) -> bool:
    return len(entry.shape) == 2 and entry.role not in (*EXPERT_ROLES, CONSTANT_ROLE)
