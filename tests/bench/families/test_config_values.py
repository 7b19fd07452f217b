"""Configs with values that make no sense: one clear error each, at once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.activations import ACT2FN

from bench.families.config_values import ACTIVATIONS
from bench.families.family import family_named, family_of
from methods.framework.errors import CheckpointError, NotMoEError
from tests.support.tiny import tiny_config

NAN = float("nan")


def opened(family: str, **changes: Any) -> None:
    config = {**json.loads(tiny_config(family).to_json_string(use_diff=False)), **changes}
    family_of(config).inventory(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**9}, "num_hidden_layers as 1000000000"),
        ({"num_hidden_layers": 10**5000}, "more than 60 digits"),
        ({"num_experts": 10**9, "num_local_experts": None}, "at most 262144 experts"),
        ({"per_layer_config": {"0": {"num_experts": 10**9}}}, "at most 262144 experts"),
        ({"num_experts_per_tok": 99}, "99 experts per token .* more than the 8"),
        ({"per_layer_config": {"1": {"num_experts": 1}}}, "2 experts per token .* more than the 1 that layer 1"),
        ({"hidden_act": "sillu"}, "hidden_act as 'sillu'"),
        ({"hidden_act": ["silu"]}, "hidden_act"),
        ({"hidden_act": None}, "hidden_act as None"),
        ({"rms_norm_eps": NAN}, "rms_norm_eps as nan"),
        ({"rms_norm_eps": float("inf")}, "rms_norm_eps as inf"),
        ({"rms_norm_eps": "1e-6"}, "rms_norm_eps as '1e-6'"),
        ({"rms_norm_eps": 10**400}, "rms_norm_eps as an integer"),
        ({"hidden_size": 64.0}, "hidden_size as 64.0"),
        ({"hidden_size": "64"}, "hidden_size as '64'"),
        ({"hidden_size": True}, "hidden_size as True"),
        ({"hidden_size": -64}, "hidden_size as -64"),
        ({"vocab_size": [64]}, "vocab_size"),
        ({"num_experts": [8], "num_local_experts": [8]}, "num_experts as"),
        ({"norm_topk_prob": "false"}, "norm_topk_prob as 'false'"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings as 1"),
        ({"mlp_only_layers": {"0": 1}}, "mlp_only_layers"),
        ({"mlp_only_layers": [0.0]}, "mlp_only_layers"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"dtype": ["float32"]}, "dtype as"),
        ({"architectures": "Qwen2MoeForCausalLM"}, "architectures"),
        ({"model_type": ["qwen2_moe"]}, "model_type as"),
        ({"num_attention_heads": 0}, "cannot evaluate|must be an integer"),
        ({"decoder_sparse_step": 0}, "cannot evaluate"),
        ({"per_layer_config": [1]}, "per_layer_config holds"),
        ({"per_layer_config": {"one": {}}}, "names layer one"),
        ({"per_layer_config": {"1": {}, "01": {}}}, "names layer 01"),
        ({"per_layer_config": {"1": [4]}}, "layer 1 is"),
        ({"per_layer_config": {"1": {"num_experts": 4.0}}}, "states num_experts as 4.0"),
        ({"per_layer_config": {"1": {"num_experts": 4, "num_local_experts": 5}}}, "one integer"),
        ({"per_layer_config": {"1": {"num_experts_per_tok": "2"}}}, "states num_experts_per_tok as '2'"),
        ({"per_layer_config": {"1": {"expert_form": [1]}}}, "expert_form"),
        ({"per_layer_config": {"1": {"expert_map": "01"}}}, "expert_map"),
        ({"quantization_config": [1]}, "quantization_config"),
    ],
)
def test_a_senseless_value_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        opened("qwen2_moe", **change)


def test_activations_are_those_of_transformers() -> None:
    assert [name for name in ACTIVATIONS if name not in ACT2FN] == []


@pytest.mark.parametrize("key", ["text_config", "ffn_config"])
def test_experts_in_a_nested_config_are_not_called_dense(key: str) -> None:
    with pytest.raises(NotMoEError, match=f"stated in {key}"):
        family_of({"model_type": "wrapped", key: {"moe_num_experts": 16}})


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_no_shared_experts_are_refused_for_what_they_are(name: str) -> None:
    with pytest.raises(CheckpointError, match="n_shared_experts is 0"):
        opened(name, n_shared_experts=0)


def test_all_layers_of_multi_token_prediction_may_lie_in_the_files() -> None:
    config = json.loads(tiny_config("deepseek_v3").to_json_string(use_diff=False))
    layers = config["num_hidden_layers"]
    found = family_named("deepseek_v3").ignorable({**config, "num_nextn_predict_layers": 3})
    assert {f"model.layers.{layers + i}.*" for i in range(3)} <= set(found)
    assert f"model.layers.{layers + 3}.*" not in found
