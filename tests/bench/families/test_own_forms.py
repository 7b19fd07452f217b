"""What single families of transformers state in a way of their own: spans of layers, lists of one number, other names of keys."""

from __future__ import annotations

import json
import re
from typing import Any

import numpy as np
import pytest
import torch

from bench.families.family import family_named, family_of
from bench.models.model_config import model_config
from methods.block_drop import BlockDrop
from methods.framework.errors import CheckpointError, PlanError, RefusedError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result
from methods.kernels.routing import route
from tests.support.tiny import tiny_config


def config_dict(family: str, **overrides: Any) -> dict[str, Any]:
    return {**json.loads(tiny_config(family, **overrides).to_json_string(use_diff=False)), "dtype": "float32"}


def after(config: dict[str, Any], layers: list[LayerPlan]) -> dict[str, Any]:
    family = family_of(config)
    inventory = family.inventory(config)
    plan = Plan.of(inventory, layers)
    written = family.config_for(config, plan, result(plan, inventory))
    assert family_of(written).inventory(written).layers == result(plan, inventory).layers
    return written


def blocks(count: int, *gone: int) -> list[LayerPlan]:
    return [LayerPlan(drop="block" if index in gone else "none") for index in range(count)]


def test_a_span_of_layers_with_experts_follows_dropped_blocks() -> None:
    config = config_dict("ernie4_5_moe", num_hidden_layers=6, moe_layer_start_index=1, moe_layer_end_index=4)
    kinds = ["dense", "moe", "moe", "moe", "moe", "dense"]
    assert [layer.mlp for layer in family_of(config).inventory(config).layers] == kinds
    written = after(config, blocks(6, 0, 2))
    assert (written["moe_layer_start_index"], written["moe_layer_end_index"]) == (0, 2)
    spaced = config_dict("ernie4_5_moe", num_hidden_layers=6, moe_layer_interval=2, moe_layer_end_index=-1)
    written = after(spaced, blocks(6, 2, 4))
    assert [written[key] for key in ("moe_layer_start_index", "moe_layer_end_index", "moe_layer_interval")] == [1, 3, 1]
    with pytest.raises(PlanError, match=r"dense layers \[0, 2\] stand between layers with experts"):
        after(spaced, blocks(6, 4))


def test_a_sum_below_the_floor_counts_as_the_floor() -> None:
    config = config_dict("ernie4_5_moe", moe_norm_min=0.25)
    router = family_of(config).inventory(config).router
    assert router.floor == 0.25
    logits_TE = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 10.0, 10.0], [0.0] * 8])
    correction_E = torch.tensor([9.0, 8.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    found = route(logits_TE, router, 2, correction_E).weights_TK
    assert found[0].sum() == pytest.approx(float(logits_TE[0].softmax(0)[:2].sum()) / 0.25)
    assert found[1].sum() == pytest.approx(1.0)


def test_lists_of_one_number_are_read_and_cut() -> None:
    config = config_dict("hunyuan_v1_moe", moe_topk=[2, 2, 2]) | {"moe_intermediate_size": [32, 32, 32]}
    assert [layer.top_k for layer in family_of(config).inventory(config).layers] == [2, 2, 2]
    written = after(config, blocks(3, 1))
    assert written["moe_topk"] == 2 and written["moe_intermediate_size"] == [32, 32]
    for wrong, words in (
        ({"moe_topk": [2, 2]}, "moe_topk as [2, 2]; allowed: integers from 0 on, one for each layer"),
        ({"moe_topk": [2, 2, "2"]}, "integers from 0 on, one for each layer"),
        ({"moe_topk": [2, 2, 3]}, "entries of the list differ"),
        ({"num_experts": [8, 8, 8]}, "num_experts as [8, 8, 8]; allowed: an integer from 0 on"),
    ):
        with pytest.raises(CheckpointError, match=re.escape(words)):
            family_of(config | wrong).inventory(config | wrong)


def test_a_model_as_it_is_published_gets_the_keys_that_transformers_needs() -> None:
    family = family_named("hunyuan_v1_moe")
    published = {**config_dict("hunyuan_v1_moe"), "model_type": "hunyuan", "attention_head_dim": 32, "head_dim": None}
    assert family_of(published) is family
    assert family.inventory(published).layers == family.inventory(published | {"head_dim": 32}).layers
    assert model_config(family, published).head_dim == 32


def test_lists_that_say_which_layer_is_what_must_agree() -> None:
    stated = {"hybrid_layer_pattern": [0, 1, 1], "moe_layer_freq": [0, 1, 1]}
    config = config_dict("mimo_v2_flash") | stated | {"layer_types": None, "mlp_layer_types": None}
    layers = family_of(config).inventory(config).layers
    assert [layer.mlp for layer in layers] == ["dense", "moe", "moe"]
    assert [any(entry.role == "attention.sinks" for entry in layer.tensors) for layer in layers] == [False, True, True]
    written = after(config, blocks(3, 1))
    assert written["layer_types"] == ["full_attention", "sliding_attention"]
    assert written["mlp_layer_types"] == ["dense", "sparse"] and written["moe_layer_freq"] == [0, 1]
    for wrong, words in (
        ({"hybrid_layer_pattern": [0, 1, 0]}, "layer 2: hybrid_layer_pattern says otherwise"),
        ({"moe_layer_freq": [1, 1, 1]}, "layer 0: moe_layer_freq says otherwise"),
    ):
        with pytest.raises(CheckpointError, match=words):
            family_of(config | wrong).inventory(config | wrong)


def test_what_multiplies_embeddings_and_outputs_follows_the_config() -> None:
    family, config = family_named("afmoe"), config_dict("afmoe")
    assert (family.embedding_scale(config), family.embedding_scale(config | {"mup_enabled": False})) == (8.0, 1.0)
    assert family.sublayer_scale(config) == 1.0
    assert family.output_norm_module(2) == "model.layers.2.post_mlp_layernorm"


def test_a_bias_of_the_choice_may_be_left_out() -> None:
    family = family_named("lfm2_moe")
    for stated in (True, False):
        found = family.inventory(config_dict("lfm2_moe", use_expert_bias=stated))
        roles = {entry.role for entry in found.tensors()}
        assert found.router.correction_bias == stated == ("router.correction" in roles)
    with pytest.raises(CheckpointError, match="layer_types, which says where there is attention"):
        family_of(config_dict("lfm2_moe") | {"layer_types": None})


def test_sparsemixer_weighs_each_choice_among_the_logits_that_are_close() -> None:
    config = config_dict("phimoe", router_jitter_noise=0.05)
    router = family_of(config).inventory(config).router
    logits_TE = torch.tensor([[2.0, 1.9, 1.0, -3.0], [-1.0, -1.05, -1.2, -9.0]], dtype=torch.float64)
    found = route(logits_TE, router, 2)
    assert found.indices_TK.tolist() == [[0, 1], [0, 1]]
    share = 1 / (1 + torch.tensor([-0.1, -0.05], dtype=torch.float64).exp())
    torch.testing.assert_close(found.weights_TK[:, 0], share)
    torch.testing.assert_close(found.weights_TK[:, 1], torch.ones(2, dtype=torch.float64))
    alone = route(logits_TE[:, [0, 2, 3]], router, 2)
    torch.testing.assert_close(alone.weights_TK[:, 0], torch.ones(2, dtype=torch.float64))


def test_sparsemixer_takes_two_experts_and_no_other_number() -> None:
    config = config_dict("phimoe")
    inventory = family_of(config).inventory(config)
    with pytest.raises(PlanError, match="top_k 1 is asked for, and a sparsemixer router always takes two"):
        Plan.of(inventory, [LayerPlan(top_k=1), LayerPlan(), LayerPlan()])
    with pytest.raises(CheckpointError, match="its router always takes two experts"):
        family_of(config | {"num_experts_per_tok": 3})


@pytest.mark.parametrize("family", ["lfm2_moe", "qwen3_next", "qwen3_5_moe", "jamba"])
def test_one_layer_with_attention_stays(family: str) -> None:
    config = config_dict(family)
    inventory = family_of(config).inventory(config)
    (alone,) = inventory.attending_layers
    plans = [LayerPlan(drop="block" if index == alone else "none") for index in range(3)]
    with pytest.raises(PlanError, match=rf"with attention \({alone}\).* of these 1, at most 0 may go"):
        Plan.of(inventory, plans)
    cosine = np.array([0.9 if index == alone else 0.1 for index in range(3)])
    if family != "jamba":
        with pytest.raises(RefusedError, match="block_drop: the plan drops every decoder layer with attention"):
            BlockDrop(keep=0.6).plan(inventory, Stats({"block_cosine": tuple(cosine)}, 1))
        other = BlockDrop(keep=0.6).plan(inventory, Stats({"block_cosine": tuple(1 - cosine)}, 1))
        assert [layer.drop for layer in other.layers].count("block") == 1


def test_a_model_that_counts_its_layers_in_periods_keeps_them() -> None:
    config = config_dict("jamba")
    inventory = family_of(config).inventory(config)
    assert [layer.mlp for layer in inventory.layers] == ["moe", "dense", "moe"]
    assert inventory.whole_depth is not None and inventory.whole_depth.startswith("its config states which layers")
    refused = BlockDrop(keep=0.6).refuse(inventory)
    assert refused == f"decoder layers of this model cannot be dropped: {inventory.whole_depth}"
    assert BlockDrop(keep=1.0).refuse(inventory) is None
    with pytest.raises(PlanError, match="others"):
        after(config, blocks(3, 0))
