"""Costs that count equal experts once, against sums over all tensors that a plan leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from methods.framework.cost import Cost, cost, cost_of, layer_costs
from methods.framework.inventory import Inventory, LayerInventory, Piece, Storage, TensorEntry
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.transfer import result
from tests.methods.framework.test_forms import inventory_of
from tests.support.inside_plans import FORMS, SELECTIONS, everywhere, fitting
from tests.support.inventories import toy_inventory

QUANTITIES = ("experts", "channels", "routed_parameters", "parameters", "active_parameters", "bytes", "flops")


def slow_layer(layer: LayerInventory, inventory: Inventory, tokens: int) -> list[int]:
    """Add up one tensor after the other."""
    experts, top_k = (layer.experts, layer.top_k) if layer.mlp == "moe" else (0, 0)
    channels = routed = parameters = own = mixtures = stored = matrices = 0
    for entry in layer.tensors:
        parameters, stored = parameters + entry.parameters, stored + entry.nbytes
        if not entry.role.startswith("expert."):
            matrices += entry.parameters if len(entry.shape) == 2 and entry.role != "constant.experts" else 0
            continue
        routed += entry.parameters
        if entry.expert is None:
            matrices += entry.numel if len(entry.shape) == 2 else 0
            matrices += entry.shape[1] * entry.shape[2] * top_k if len(entry.shape) == 3 else 0
            continue
        own += entry.parameters
        mixtures += entry.parameters if entry.role.endswith("mix") else 0
        channels += entry.shape[0] if entry.role in ("expert.gate", "expert.gate.left", "expert.gate.packed") else 0
    matrices += (own - mixtures) * top_k // experts if experts else 0
    idle = own * max(0, experts - top_k) // experts if experts else 0
    heads = inventory.attention
    quadratic = 2 * tokens**2 * heads.heads * (heads.qk_head_dim + heads.v_head_dim)
    return [experts, channels, routed, parameters, parameters - idle, stored, 2 * tokens * matrices + quadratic]


def slow_cost(inventory: Inventory, tokens: int) -> list[int]:
    outer = sum(entry.parameters for entry in inventory.outer)
    head = 2 * tokens * inventory.vocab * inventory.hidden
    parts = [[0, 0, 0, outer, outer, sum(entry.nbytes for entry in inventory.outer), head]]
    parts += [slow_layer(layer, inventory, tokens) for layer in inventory.layers]
    return [sum(column) for column in zip(*parts, strict=True)]


def values(found: Cost) -> list[int]:
    return [getattr(found, name) for name in QUANTITIES]


def check(plan: Plan, inventory: Inventory) -> Inventory:
    """Compare a plan's cost with its result, tensor by tensor; and that of the result as it is, layer by layer."""
    after = result(plan, inventory)
    assert values(cost(plan, inventory, 10)) == slow_cost(after, 10)
    assert values(cost_of(after, 10)) == slow_cost(after, 10)
    assert [values(one) for one in layer_costs(after, 10)] == [slow_layer(one, after, 10) for one in after.layers]
    return after


@pytest.mark.parametrize("family", ["deepseek_v3", "gpt_oss", "qwen2_moe"])
def test_selections_and_drops(family: str) -> None:
    inventory = inventory_of(family)
    for name, selection in SELECTIONS.items():
        if name == "all" or family != "gpt_oss" or "constants" not in selection:
            check(everywhere(inventory, LayerPlan(**selection)), inventory)
    layers = [LayerPlan() for _ in inventory.layers]
    layers[inventory.moe_layers[-1]] = LayerPlan(drop="moe")
    check(Plan.of(inventory, layers), inventory)
    check(Plan.of(inventory, [LayerPlan(drop="block"), *[LayerPlan()] * (len(layers) - 1)]), inventory)


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, selection: str) -> None:
    for family in ("deepseek_v3", "qwen2_moe"):
        inventory = inventory_of(family)
        after = check(everywhere(inventory, fitting(form, SELECTIONS[selection])), inventory)
    if form in ("channels", "4 bits") and selection != "mapped":  # experts of several kinds, and packed ones
        check(everywhere(after, LayerPlan(experts=(0, 3))), after)


def test_bits_of_all_linear_layers_with_zero_points() -> None:
    inventory = inventory_of("qwen2_moe")
    bits = FORMS["4 bits"].bits
    assert bits is not None
    for kernel in ("rtn", "awq"):
        changed = bits.model_copy(update={"scope": "all", "symmetric": False, "kernel": kernel})
        check(Plan.of(inventory, [LayerPlan(bits=changed) for _ in inventory.layers]), inventory)


def test_codes_of_the_source_and_values_that_take_their_place() -> None:
    """A source in eight bits with scales: copied experts keep them, merged and factored ones are values."""
    whole = toy_inventory()

    def coded(entry: TensorEntry) -> TensorEntry:
        if entry.expert is None or entry.role == "expert.down":
            return entry
        pieces = (Piece("weight", "F8_E4M3", entry.shape), Piece("weight_scale_inv", "F32", (1, 1)))
        return replace(entry, stored=Storage("fp8", (128, 128), pieces))

    layers = tuple(replace(layer, tensors=tuple(map(coded, layer.tensors))) for layer in whole.layers)
    inventory = whole.with_layers(layers)
    pair = SELECTIONS["merged"]["merges"]
    for layer in (
        LayerPlan(experts=(0, 3)),
        LayerPlan(experts=(0, 1, 3), merges=pair, router="mean"),
        LayerPlan(channels=((0,), (0, 1), (0, 1, 2), (2,))),
    ):
        check(Plan.of(inventory, [LayerPlan(), layer, LayerPlan()]), inventory)
