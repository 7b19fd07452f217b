"""Inventories from configs alone, and the configs of compressed checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

from bench.families.expression import evaluate, names
from bench.families.family import Family, families, family_named, family_of
from bench.families.family_file import read_family_file
from bench.models.tiny import RUNNABLE
from methods.framework.errors import CheckpointError, ConfigError, NotMoEError, PlanError
from methods.framework.inside import Quantisation
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import result
from tests.support.places import ROOT
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_config, tiny_model


def config_dict(family: str, **overrides: Any) -> dict[str, Any]:
    return {**json.loads(tiny_config(family, **overrides).to_json_string(use_diff=False)), "dtype": "float32"}


def opened(config: dict[str, Any]) -> tuple[Family, Inventory]:
    family = family_of(config)
    return family, family.inventory(config)


def compressed(config: dict[str, Any], layers: list[LayerPlan]) -> tuple[dict[str, Any], Inventory]:
    family, inventory = opened(config)
    plan = Plan.of(inventory, layers)
    expected = result(plan, inventory)
    return family.config_for(config, plan, expected), expected


@pytest.mark.parametrize("variant", [False, True], ids=["plain", "variant"])
@pytest.mark.parametrize("name", FAMILIES)
def test_inventory_from_config_is_what_transformers_writes(name: str, variant: bool) -> None:
    folder = tiny_checkpoint(name, **(family_named(name).file.variant if variant else {}))
    config = json.loads((folder / "config.json").read_text())
    family, inventory = opened(config)
    with safe_open(folder / "model.safetensors", "pt") as file:
        written = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - not a dict
    assert {entry.name: entry.shape for entry in inventory.tensors()} == written
    assert family.name == inventory.family == name
    assert len(list(inventory.tensors())) == len(written)
    assert all(entry.dtype == "F32" for entry in inventory.tensors())
    assert inventory.tied_embeddings == ("lm_head.weight" not in written)


@pytest.mark.parametrize("name", FAMILIES)
def test_placement_names_the_parameters_of_transformers(name: str) -> None:
    model = tiny_model(name)
    state = model.state_dict()
    family, inventory = opened(config_dict(name))
    assert family.module_shapes(inventory) == {key: tuple(tensor.shape) for key, tensor in state.items()}
    for entry in inventory.tensors():
        place = family.placement(entry)
        parameter = place.within(state[place.name])
        assert tuple(parameter.shape) == entry.shape
    norm, block = family.mlp_modules(2)
    layer = model.model.layers[2]
    assert model.get_submodule(block) is layer.mlp
    assert model.get_submodule(norm) is layer.post_attention_layernorm
    assert model.get_submodule(family.router_module(2)) is layer.mlp.gate
    assert model.get_submodule(family.experts_module(2)) is layer.mlp.experts
    per_expert = {key for key, tensor in layer.mlp.gate.state_dict().items() if len(tensor) == 8}
    assert set(family.router_attributes()) == per_expert


def test_every_family_that_can_be_run_is_tried_and_served() -> None:
    for name in families():
        file = family_named(name).file
        assert (file.architecture is not None and not file.dense) == (name in RUNNABLE), name
        assert name not in FAMILIES or file.vllm is not None, name
        assert name not in RUNNABLE or (file.variant and not file.variant.items() <= (file.tiny or {}).items()), name


def test_router_semantics_follow_the_config() -> None:
    assert opened(config_dict("mixtral"))[1].router.renormalise
    assert not opened(config_dict("qwen2_moe"))[1].router.renormalise
    assert opened(config_dict("qwen2_moe", norm_topk_prob=True))[1].router.renormalise
    grouped = config_dict("deepseek_v2", topk_method="group_limited_greedy", n_group=4, topk_group=2)
    router = opened({**grouped, "routed_scaling_factor": 16.0})[1].router
    assert (router.groups, router.groups_kept, router.group_score, router.scale) == (4, 2, "max", 16.0)
    assert opened(config_dict("deepseek_v2", n_group=4, topk_group=2))[1].router.groups == 1
    router = opened(config_dict("deepseek_v3"))[1].router
    assert (router.score, router.groups, router.group_score, router.correction_bias) == ("sigmoid", 2, "top2_sum", True)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "hidden_size": 64}, "dense model"),
        ({"model_type": "newmoe", "num_experts": 8}, "follow no known family"),
        ({"model_type": "newmoe", "moe_num_experts": 8}, "follow no known family"),
        ({"model_type": "dense", "num_experts": 0, "num_experts_per_tok": 2}, "dense model"),
        ({}, "model_type None"),
        (lambda: {**config_dict("mixtral"), "num_local_experts": 0}, "0 experts"),
        (lambda: {**config_dict("qwen2_moe"), "num_experts": None}, "no experts"),
    ],
)
def test_non_moe_and_unknown_models_are_refused_with_the_known_families(config: Any, words: str) -> None:
    with pytest.raises(NotMoEError, match=words) as error:
        family_of(config() if callable(config) else config)
    assert all(name in str(error.value) for name in families())


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("qwen3_moe", {"num_experts": 4}, "contradicts itself"),
        ("deepseek_v2", {"norm_topk_prob": True}, "renormalises"),
        ("deepseek_v2", {"mlp_bias": True}, "mlp_bias"),
        ("deepseek_v3", {"scoring_func": "softmax"}, "sigmoid"),
        ("deepseek_v3", {"moe_layer_freq": 2}, "moe_layer_freq"),
        ("mixtral", {"hidden_size": None}, "hidden_size|D // H|D is"),
        ("mixtral", {"dtype": "int3"}, "int3"),
        ("mixtral", {"per_layer_config": {"7": {"num_local_experts": 2}}}, "layer 7"),
        ("mixtral", {"per_layer_config": {"1": {"sliding_window": 2}}}, "sliding_window"),
    ],
)
def test_configs_that_cannot_be_read_say_why(name: str, change: dict[str, Any], words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        opened({**config_dict(name), **change})


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_layers_keep_a_stock_config(name: str) -> None:
    config = config_dict(name)
    _, inventory = opened(config)
    keep = [LayerPlan(experts=(0, 1, 4, 5)) if layer.mlp == "moe" else LayerPlan() for layer in inventory.layers]
    written, expected = compressed(config, keep)
    assert "per_layer_config" not in written
    assert written["architectures"] == [family_of(config).architecture]
    assert opened(written)[1] == expected
    assert AutoConfig.for_model(**written).num_experts_per_tok == 2


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("second", [LayerPlan(experts=(0, 1, 4, 5)), LayerPlan(drop="moe"), LayerPlan(top_k=1)])
def test_different_layers_are_stated_per_layer_and_refused_by_stock_transformers(name: str, second: LayerPlan) -> None:
    config = config_dict(name)
    written, expected = compressed(config, [LayerPlan(), second, LayerPlan()])
    assert set(written["per_layer_config"]) == {"1"}
    assert written["architectures"] == [f"Moebench{family_of(config).architecture}"]
    assert opened(written)[1] == expected
    padded = {**written, "per_layer_config": {"01": written["per_layer_config"]["1"]}}
    assert opened(padded)[1] == expected
    stock = AutoConfig.for_model(**written)
    with pytest.raises(RuntimeError, match="per-layer attribute"):
        AutoModelForCausalLM.from_config(stock)


PAIR = Merge(into=1, members=(0, 1), weights=(0.5, 0.5))
MAPPED = LayerPlan(experts=(1, 2, 5), merges=(PAIR,), constants=(3, 7), router="map")
"""Rows 0, 1, 2, 3, 5 and 7 stay, three for each half of the experts; 4 and 6 are gone."""


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_and_constants_are_stated_per_layer_and_read_back(name: str) -> None:
    config = config_dict(name)
    grouped = (
        MAPPED if name != "deepseek_v3" else LayerPlan.model_validate({**MAPPED.model_dump(), "constants": (4, 7)})
    )
    for layers in ([LayerPlan(), grouped, LayerPlan()], [LayerPlan(), grouped, grouped]):
        written, expected = compressed(config, layers)
        stated = written["per_layer_config"]["1"]
        place = [0, 0, 1, 3, 2, 4]  # of the rows in order; of deepseek_v3, row 4 is a constant and stands before row 5
        assert stated["expert_map"] == place and stated["constant_experts"] == 2
        assert written["architectures"] == [f"Moebench{family_of(config).architecture}"]
        layer = expected.layers[1]
        assert (layer.experts, layer.rows, layer.constants, layer.expert_map) == (3, 6, 2, tuple(place))
        assert opened(written)[1] == expected
        saved = json.loads(AutoConfig.for_model(**written).to_json_string())
        assert opened({**saved, "dtype": "float32"})[1] == expected
    names = [entry.name for entry in layer.tensors]
    router = next(entry for entry in layer.tensors if entry.role == "router.weight")
    constants = layer.tensors[names.index(router.name) + 1]
    assert (constants.role, constants.shape, constants.dtype) == ("constant.experts", (2, 64), "F32")
    assert router.shape == (6, 64)
    block = family_of(config).mlp_modules(1)[1]
    assert family_of(config).placement(constants).name == f"{block}.constant_experts"
    assert family_of(config).module_shapes(expected)[f"{block}.experts.down_proj"][0] == 3


def test_a_model_without_maps_states_none_after_one_that_had_them() -> None:
    config, _ = compressed(config_dict("mixtral"), [LayerPlan(), MAPPED, LayerPlan()])
    assert config["expert_map"] is None and config["constant_experts"] == 0
    written, expected = compressed(config, [LayerPlan(), LayerPlan(drop="block"), LayerPlan()])
    assert not {"per_layer_config", "expert_map", "constant_experts"} & set(written)
    assert opened(written)[1] == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"expert_map": [0, 0, 1, 2, 9, 4]}, "entry 9 is out of range"),
        ({"expert_map": [0, 0, 1, 2, -1, 3]}, "entry -1 is out of range"),
        ({"expert_map": [0, 0, 1, 3, 3, 4]}, "no row leads to place 2"),
        ({"expert_map": [0, 0, 1, 2, 3]}, "it has 5 entries"),
        ({"expert_map": [0, 0, 1, 2, 3, 4, 4]}, "it has 7 entries"),
        ({"expert_map": [0, 0, 1, 2, 3, "4"]}, "not a list of integers"),
        ({"expert_map": {"0": 1}}, "not a list of integers"),
        ({"expert_map": None}, "it is None"),
        ({"constant_experts": 5}, "constant_experts is 5 with 5 places"),
        ({"constant_experts": -1}, "constant_experts is -1"),
        ({"constant_experts": "2"}, "constant_experts is '2'"),
    ],
)
def test_damaged_maps_are_named(change: dict[str, Any], words: str) -> None:
    written, _ = compressed(config_dict("mixtral"), [LayerPlan(), MAPPED, LayerPlan()])
    layer = {**written["per_layer_config"]["1"], **change}
    with pytest.raises(CheckpointError, match=words) as error:
        opened({**written, "per_layer_config": {"1": layer}})
    assert "layer 1" in str(error.value) and "fetch or write" in str(error.value)


def test_a_map_on_a_layer_without_router_is_damaged() -> None:
    for places in ([0, 1], []):
        with pytest.raises(CheckpointError, match=r"layer 0 in config\.json is damaged"):
            opened({**config_dict("deepseek_v2"), "per_layer_config": {"0": {"expert_map": places}}})


def test_dropping_the_whole_of_the_moe_still_reads_back() -> None:
    config = config_dict("mixtral")
    written, expected = compressed(config, [LayerPlan(drop="moe")] * 3)
    assert opened(written)[1] == expected
    assert expected.moe_layers == ()


def test_pruning_different_layers_until_equal_gives_a_stock_config_again() -> None:
    config, _ = compressed(config_dict("mixtral"), [LayerPlan(), LayerPlan(experts=(0, 1, 2)), LayerPlan()])
    keep = LayerPlan(experts=(0, 1, 2))
    written, expected = compressed(config, [keep, LayerPlan(), keep])
    assert written["architectures"] == ["MixtralForCausalLM"] and "per_layer_config" not in written
    assert opened(written)[1] == expected


def test_dropped_blocks_renumber_what_a_config_states_layer_by_layer() -> None:
    drop = LayerPlan(drop="block")
    written, expected = compressed(config_dict("deepseek_v2"), [drop, LayerPlan(), LayerPlan()])
    assert (written["num_hidden_layers"], written["first_k_dense_replace"]) == (2, 0)
    assert opened(written)[1] == expected
    config = config_dict("qwen2_moe", num_hidden_layers=6, decoder_sparse_step=2, mlp_only_layers=[3])
    config["layer_types"] = ["full_attention"] * 4 + ["sliding_attention"] * 2
    assert opened(config)[1].moe_layers == (1, 5)
    written, expected = compressed(config, [LayerPlan(), LayerPlan(), drop, LayerPlan(), drop, LayerPlan()])
    assert written["layer_types"] == ["full_attention"] * 3 + ["sliding_attention"]
    assert (written["mlp_only_layers"], written["decoder_sparse_step"]) == ([0, 2], 1)
    assert opened(written)[1] == expected and expected.moe_layers == (1, 3)
    config.pop("layer_types")
    with pytest.raises(PlanError, match="layer_types"):
        compressed({**config, "use_sliding_window": True}, [drop] + [LayerPlan()] * 5)


def test_groups_must_leave_the_router_a_choice() -> None:
    keep = LayerPlan(experts=(0, 4))
    with pytest.raises(PlanError, match="takes at least 4 experts in all; 2 stay"):
        compressed(config_dict("deepseek_v3"), [LayerPlan(), keep, keep])


def test_both_spellings_are_written_and_transformers_reads_the_result_right() -> None:
    for name in ("qwen2_moe", "qwen3_moe", "olmoe"):
        written, _ = compressed(config_dict(name), [LayerPlan(experts=(0, 1, 2))] * 3)
        assert written["num_experts"] == written["num_local_experts"] == 3
        assert AutoConfig.for_model(**written).num_experts == 3


def test_a_second_spelling_in_the_source_follows() -> None:
    for name, alias in (
        ("mixtral", "num_experts"),
        ("deepseek_v2", "num_experts"),
        ("deepseek_v3", "num_local_experts"),
    ):
        keep = LayerPlan(experts=(0, 1, 4, 5))
        layers = [LayerPlan() if name != "mixtral" else keep, keep, keep]
        written, _ = compressed({**config_dict(name), alias: 8}, layers)
        assert written[alias] == 4
        assert getattr(AutoConfig.for_model(**written), alias) == 4


def test_family_files_are_strict(tmp_path: Path) -> None:
    text = (ROOT / "bench/families/olmoe.toml").read_text()
    path = tmp_path / "new.toml"
    for old, new, words in (
        ('name = "olmoe"', 'name = "olmoe"\nexpert = 3', "expert: is not known here, found 3"),
        ('E = "num_local', 'e = "num_local', "symbols lacks E"),
        ('"head_dim or D // H"', '"open(D)"', "Call is not allowed"),
        ("[tiny]\n", "[tiny]\n[tiny.sub]\n[unknown]\n", "unknown: is not known here"),
        ("fused = [\n", "other = [\n", "tensors.fused: is missing"),
        ('block = "OlmoeMoE"\n', "", "vllm.block: is missing"),
        ("[router]", "[router", "not TOML"),
    ):
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=words):
            read_family_file(path)
    path.write_text(text.replace('name = "olmoe"', 'name = "other"'))
    assert read_family_file(path).name == "other"
    path.write_text(text.replace("[variant]\n", '[variant]\nhead_dim = "None"\n'))
    assert read_family_file(path).variant["head_dim"] is None


def test_expressions() -> None:
    known = names({"a": 6, "b": None}, {"c": [1]})
    assert evaluate("b or a // 4 + 1", known) == 2
    assert evaluate("absent is None and 1 in c", known)
    with pytest.raises(ConfigError, match="absent"):
        evaluate("absent * 2", known)
    with pytest.raises(ConfigError, match="Attribute"):
        evaluate("a.real", known)


def test_a_file_may_begin_with_that_of_another_family(tmp_path: Path) -> None:
    path = tmp_path / "new.toml"
    path.write_text(
        'name = "new"\nlike = "glm4_moe"\nmodel_types = ["new"]\nvllm = "None"\n[defaults]\nn_group = 2\n'
        '[tiny]\nhead_dim = "None"\n'
        '[tensors]\ndense = []\n[tensors.also]\nignorable = [{ name = "extra.*" }]\n'
    )
    ours, theirs = read_family_file(path), family_named("glm4_moe").file
    assert ours.vllm is None and theirs.vllm is not None and ours.tiny is not None and ours.tiny["head_dim"] is None
    assert ours.defaults == {**theirs.defaults, "n_group": 2} and ours.symbols == theirs.symbols
    assert ours.tensors.dense == () and ours.tensors.layer == theirs.tensors.layer
    assert [rule.name for rule in ours.tensors.ignorable] == [*(r.name for r in theirs.tensors.ignorable), "extra.*"]
    for like in ("new", "missing", "../families/glm4_moe"):
        path.write_text(f'name = "new"\nlike = "{like}"\n')
        with pytest.raises(ConfigError, match="which is no family of the package"):
            read_family_file(path)


def test_expressions_look_into_lists() -> None:
    known = names({"kinds": ["a", "b"], "layer": 1, "alike": [3, 3]})
    assert evaluate("kinds[layer] == 'b'", known) and evaluate("one(alike) + one(layer)", known) == 4
    for text, words in (("kinds[layer + 1]", "out of range"), ("one(kinds)", "differ"), ("len(kinds)", "Call")):
        with pytest.raises(ConfigError, match=words):
            evaluate(text, known)


def test_a_list_of_kinds_follows_the_layers() -> None:
    config = config_dict("glm4_moe_lite", mlp_layer_types=["sparse", "dense", "sparse"])
    written, _ = compressed(config, [LayerPlan(drop="block"), LayerPlan(), LayerPlan()])
    assert written["mlp_layer_types"] == ["dense", "sparse"]
    unsaid = {**config_dict("glm4_moe_lite"), "mlp_layer_types": None, "first_k_dense_replace": 1}
    written, _ = compressed(unsaid, [LayerPlan(drop="block"), LayerPlan(), LayerPlan()])
    assert written["mlp_layer_types"] == ["sparse", "sparse"] and written["first_k_dense_replace"] == 0
    with pytest.raises(CheckpointError, match="mlp_layer_types"):
        opened({**unsaid, "first_k_dense_replace": 3})


def test_a_list_that_a_config_leaves_out_is_stated_once_layers_go() -> None:
    unsaid = {**config_dict("qwen3_next", num_hidden_layers=5), "layer_types": None, "full_attention_interval": 2}
    keep, drop = LayerPlan(), LayerPlan(drop="block")
    written, inventory = compressed(unsaid, [keep, keep, drop, keep, keep])
    assert written["layer_types"] == ["linear_attention", "full_attention", "full_attention", "linear_attention"]
    mixed = [any(entry.role == "mixer.in" for entry in layer.tensors) for layer in inventory.layers]
    assert mixed == [kind == "linear_attention" for kind in written["layer_types"]]
    bits = LayerPlan(bits=Quantisation(bits=4, group=16, kernel="awq"))
    with pytest.raises(PlanError, match="AWQ"):
        compressed(config_dict("qwen3_next"), [bits, keep, keep])


def test_layers_that_share_an_index_are_refused() -> None:
    with pytest.raises(CheckpointError, match="indexer_types"):
        opened(config_dict("glm_moe_dsa", indexer_types=["full", "shared", "full"]))
