"""The printed FLOPs and memory columns of the holistic study, from public configs alone.

Source of the printed values: S. He et al., "Towards Efficient Mixture of Experts: A Holistic Study of Compression
Techniques" (arXiv 2406.02500), Table 3: FLOPs of a 2048-token forward in units of 10^12, memory in GiB. Memory was
measured on a device, so it holds weights in 16 bits and 0.3 to 0.7 GiB of other things.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.families.family import family_of
from methods import registry
from methods.framework.cost import cost, cost_of, ratios
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats

# config.json of mistralai/Mixtral-8x7B-v0.1
MIXTRAL: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
    "vocab_size": 32000,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
# config.json of deepseek-ai/deepseek-moe-16b-base
DEEPSEEK: dict[str, Any] = {
    "model_type": "deepseek",
    "hidden_size": 2048,
    "intermediate_size": 10944,
    "moe_intermediate_size": 1408,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "norm_topk_prob": False,
    "scoring_func": "softmax",
    "attention_bias": False,
    "vocab_size": 102400,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}
# model, configuration, TFLOPs printed, memory printed
PRINTED = [
    (MIXTRAL, "base", 54.4, 87.7),
    (MIXTRAL, "E2", 54.4, 66.7),
    (MIXTRAL, "L8", 42.9, 66.6),
    (MIXTRAL, "B5", 46.0, 74.1),
    (DEEPSEEK, "base", 11.7, 30.8),
    (DEEPSEEK, "E16", 11.7, 23.9),
    (DEEPSEEK, "L4", 10.6, 26.6),
    (DEEPSEEK, "B4", 10.1, 26.4),
]


def plan_of(inventory: Inventory, configuration: str) -> Plan:
    """Return E: experts removed in each MoE layer; L: MoE sub-layers dropped; B: decoder layers dropped."""
    if configuration == "base":
        return Plan.identity(inventory)
    kind, number = configuration[0], int(configuration[1:])
    layers = [LayerPlan()] * len(inventory.layers)
    for position, index in enumerate(inventory.moe_layers):
        if kind == "E":
            layers[index] = LayerPlan(experts=tuple(range(inventory.layers[index].experts - number)))
        elif position < number:
            layers[index] = LayerPlan(drop="moe" if kind == "L" else "block")
    return Plan.of(inventory, layers)


@pytest.mark.parametrize(("config", "configuration", "tflops", "memory"), PRINTED)
def test_printed_flops_and_memory(config: dict[str, Any], configuration: str, tflops: float, memory: float) -> None:
    inventory = family_of(config).inventory(config)
    price = cost(plan_of(inventory, configuration), inventory)
    assert round(price.flops / 1e12, 1) == tflops
    assert 0.2 < memory - price.bytes / 2**30 < 0.75
    assert price.bytes == 2 * price.parameters


def test_sizes_of_the_two_models() -> None:
    mixtral = family_of(MIXTRAL).inventory(MIXTRAL)
    deepseek = family_of(DEEPSEEK).inventory(DEEPSEEK)
    # The totals that the two model cards state: 46.7 B and 16.4 B, of which 12.9 B and 2.8 B are active.
    assert cost(Plan.identity(mixtral), mixtral).parameters == 46_702_792_704
    assert cost(Plan.identity(mixtral), mixtral).active_parameters == 12_879_925_248
    assert round(cost(Plan.identity(deepseek), deepseek).parameters / 1e9, 1) == 16.4
    assert round(cost(Plan.identity(deepseek), deepseek).active_parameters / 1e9, 1) == 2.8
    assert deepseek.layers[0].mlp == "dense" and len(deepseek.moe_layers) == 27


def test_ratios_of_a_quarter_of_mixtral() -> None:
    inventory = family_of(MIXTRAL).inventory(MIXTRAL)
    found = ratios(cost(Plan.identity(inventory), inventory), cost(plan_of(inventory, "E2"), inventory))
    assert found.count == found.expert == found.channels == 0.25
    assert 0.24 < found.total < 0.25


# D2-MoE (arXiv 2502.17298) states what is removed of the whole model, and prints what Mixtral keeps, in billions.
D2_MOE = [(0.6, 18.68), (0.8, 9.33)]


@pytest.mark.parametrize(("removed", "billions"), D2_MOE)
def test_whole_model_ratios_of_d2_moe(removed: float, billions: float) -> None:
    inventory = family_of(MIXTRAL).inventory(MIXTRAL)
    before = cost_of(inventory)
    fixed = before.parameters - before.routed_parameters
    keep = ((1.0 - removed) * before.parameters - fixed) / before.routed_parameters
    stats = Stats({"fisher_mass": tuple(np.ones((8, 3)) for _ in inventory.layers)})
    plan = registry.method("d2_moe", keep=keep).plan(inventory, stats)
    after = cost(plan, inventory)
    assert abs(after.parameters / 1e9 - billions) < 0.02
    assert ratios(before, after).total == pytest.approx(removed, abs=1e-3)
    # In each layer one base of three 4096 x 14336 matrices, and factors of 4096 + 14336 for each rank, matrix and expert.
    ranks = [layer.rank.ranks[0][0] for layer in plan.layers if layer.rank]
    assert max(ranks) - min(ranks) <= 1 and len(ranks) == 32
    assert after.routed_parameters == sum(3 * 4096 * 14336 + 8 * 3 * (4096 + 14336) * rank for rank in ranks)


def test_cut_channels_save_the_compute_that_removed_experts_do_not() -> None:
    inventory = family_of(DEEPSEEK).inventory(DEEPSEEK)
    before = cost_of(inventory)
    # 20 % of the channels, as CAMERA and HEAPr report for this model: 1126 of 1408 in each of 64 experts, 6 of them active.
    layer = LayerPlan(channels=(tuple(range(1126)),) * 64)
    plan = Plan.of(inventory, [layer if old.mlp == "moe" else LayerPlan() for old in inventory.layers])
    after = cost(plan, inventory)
    assert before.routed_parameters - after.routed_parameters == 27 * 64 * 3 * 282 * 2048
    assert before.active_parameters - after.active_parameters == 27 * 6 * 3 * 282 * 2048
    assert before.flops - after.flops == 2 * 2048 * 27 * 6 * 3 * 282 * 2048
    assert ratios(before, after).channels == ratios(before, after).expert == pytest.approx(282 / 1408)
