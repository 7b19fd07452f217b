"""Sources in FP8 with block scales: read as transformers does, copied bit for bit, stated truly, refused when incomplete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bench.applying.apply import apply
from bench.calibration.conditions import Conditions
from bench.calibration.streaming import StreamedPass
from bench.checkpoint.checkpoint import SINGLE, Checkpoint
from bench.checkpoint.dequantised import dequantised
from bench.families.source_formats import stored_formats
from bench.models.load import load_model
from bench.recovery.trained_weights import prepared
from bench.settings.recovery import RecoverySettings
from methods.framework.cost import cost
from methods.framework.errors import CheckpointError, PlanError, RefusedError
from methods.framework.inside import Quantisation
from methods.framework.inventory import TensorEntry
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from tests.support.quantised_sources import BLOCK, fp8_config, fp8_encoded, fp8_source
from tests.support.streamed_pass import SQUARE
from tests.support.tiny import tiny_tokens

FAMILIES = ("deepseek_v3", "qwen3_moe")
KEEP = (0, 2, 5, 7)
PAIR = Merge(into=2, members=(2, 3), weights=(0.5, 0.5))


def layer_names(*suffixes: str) -> list[str]:
    return [f"model.layers.{layer}.{suffix}" for layer in range(3) for suffix in suffixes]


def change(folder: Path, tensors: dict[str, torch.Tensor | None], **config: Any) -> Path:
    """Replace, add or (None) remove tensors, and keys of the quantization_config."""
    held = {**load_file(folder / SINGLE), **tensors}
    save_file({k: v for k, v in held.items() if v is not None}, folder / SINGLE, metadata={"format": "pt"})
    stated = json.loads((folder / "config.json").read_bytes())
    stated["quantization_config"] |= config
    (folder / "config.json").write_text(json.dumps(stated))
    return folder


def planned(checkpoint: Checkpoint, *layers: LayerPlan) -> Plan:
    return Plan.of(checkpoint.inventory, list(layers))


def parameters(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize(("family", "dtype"), [("deepseek_v3", torch.bfloat16), ("qwen3_moe", torch.float32)])
def test_values_are_those_of_transformers(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    folder = fp8_source(family, tmp_path / "fp8")
    ours = parameters(load_model(folder, dtype))
    theirs = parameters(AutoModelForCausalLM.from_pretrained(folder, dtype=dtype))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value) and ours[name].dtype == value.dtype, name


def test_blocks_may_reach_over_the_edge() -> None:
    value_MN = torch.randn(2 * BLOCK + 5, BLOCK + 3, generator=torch.Generator().manual_seed(0))
    stored = fp8_encoded(value_MN)
    formats = stored_formats({"quantization_config": fp8_config()})
    assert formats is not None
    storage = formats.schemes[0][0].storage(tuple(value_MN.shape))
    assert [piece.shape for piece in storage.pieces] == [(37, 19), (3, 2)]
    entry = TensorEntry("w.weight", "expert.gate", (37, 19), "BF16", stored=storage)
    found = dequantised(entry, [stored["weight"], stored["weight_scale_inv"]])
    for row in range(37):
        for column in range(19):
            scale = stored["weight_scale_inv"][row // BLOCK, column // BLOCK]
            assert found[row, column] == stored["weight"][row, column].float() * scale


@pytest.mark.parametrize("family", FAMILIES)
def test_what_stays_is_the_same_bytes_with_its_scales(family: str, tmp_path: Path) -> None:
    listed = ["lm_head", *layer_names("mlp.gate", "input_layernorm")]
    source = Checkpoint.open(fp8_source(family, tmp_path / "fp8", modules_to_not_convert=listed))
    dense = source.inventory.layers[0].mlp == "dense"
    some = LayerPlan(experts=KEEP)
    plan = planned(source, LayerPlan() if dense else some, some, some)
    out = apply(source, plan, tmp_path / "out")
    before, after = load_file(tmp_path / "fp8" / SINGLE), load_file(out / SINGLE)
    for name, value in after.items():
        parts = name.split(".")
        if "experts" in parts:
            parts[5] = str(KEEP[int(parts[5])])
        expected = before[".".join(parts)]
        if name.endswith((".gate.weight", ".e_score_correction_bias")):
            expected = expected[list(KEEP)]
        assert value.dtype == expected.dtype
        assert torch.equal(value.view(torch.uint8), expected.view(torch.uint8)), name
    assert {name for name in after if ".experts.3." in name and name.endswith("_inv")}
    stated = json.loads((out / "config.json").read_bytes())["quantization_config"]
    assert stated == fp8_config(modules_to_not_convert=listed)
    written = Checkpoint.open(out)
    assert cost(plan, source.inventory).bytes == sum(v.numel() * v.element_size() for v in after.values())
    assert cost(plan, source.inventory).parameters == sum(entry.numel for entry in written.inventory.tensors())
    ours, theirs = parameters(load_model(out)), parameters(AutoModelForCausalLM.from_pretrained(out, dtype="float32"))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_merged_layers_hold_values_and_say_so(tmp_path: Path) -> None:
    source = Checkpoint.open(fp8_source("qwen3_moe", tmp_path / "fp8"))
    merged = LayerPlan(experts=(0, 1, 2, 4, 5, 6, 7), merges=(PAIR,))
    plan = planned(source, merged, LayerPlan(experts=(0, 1, 2, 4, 5, 6, 7)), LayerPlan(experts=(1, 2, 3, 4, 5, 6, 7)))
    out = apply(source, plan, tmp_path / "out")
    before, after = load_file(tmp_path / "fp8" / SINGLE), load_file(out / SINGLE)
    stem = "model.layers.0.mlp.experts"
    assert {after[f"{stem}.{expert}.up_proj.weight"].dtype for expert in range(7)} == {torch.bfloat16}
    assert not [name for name in after if name.startswith(stem) and name.endswith("_inv")]
    wanted = {}
    for expert in (2, 3, 4):
        name = f"{stem}.{expert}.up_proj.weight"
        scale = before[f"{name}_scale_inv"].repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        wanted[expert] = before[name].float() * scale
    average = ((wanted[2] + wanted[3]) / 2).to(torch.bfloat16)
    assert torch.equal(after[f"{stem}.2.up_proj.weight"], average)
    assert torch.equal(after[f"{stem}.3.up_proj.weight"], wanted[4].to(torch.bfloat16))
    assert after["model.layers.1.mlp.experts.2.up_proj.weight"].dtype == torch.float8_e4m3fn
    assert after["model.layers.0.self_attn.q_proj.weight"].dtype == torch.float8_e4m3fn
    stated = json.loads((out / "config.json").read_bytes())["quantization_config"]
    assert stated == fp8_config(modules_to_not_convert=[stem])
    ours, theirs = parameters(load_model(out)), parameters(AutoModelForCausalLM.from_pretrained(out, dtype="float32"))
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_excepted_modules_follow_their_layer_and_expert(tmp_path: Path) -> None:
    listed = [
        "lm_head",
        "model.layers.1.mlp.experts.4",
        "model.layers.1.mlp.experts.5",
        r"model\.layers\.2\.self_attn\..*",
        "model.layers.3.eh_proj",
        "re.*norm",
    ]

    def plain(name: str) -> bool:
        return "layers.2.self_attn" in name or "layers.1.mlp.experts.4." in name or "layers.1.mlp.experts.5." in name

    source = Checkpoint.open(fp8_source("qwen3_moe", tmp_path / "fp8", plain, modules_to_not_convert=listed))
    plan = planned(source, LayerPlan(drop="block"), LayerPlan(experts=(0, 3, 5, 6)), LayerPlan())
    stated = source.family.config_for(source.config, plan, _result(plan, source))["quantization_config"]
    assert stated["modules_to_not_convert"] == [
        "lm_head",
        "model.layers.0.mlp.experts.2",
        "re.*norm",
        *(f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"),
    ]
    unchanged = planned(source, LayerPlan(), LayerPlan(), LayerPlan())
    stated = source.family.config_for(source.config, unchanged, source.inventory)["quantization_config"]
    assert stated["modules_to_not_convert"] == listed


def _result(plan: Plan, source: Checkpoint) -> Any:
    from methods.framework.transfer import result

    return result(plan, source.inventory)


def test_statistics_are_those_of_the_values(tmp_path: Path) -> None:
    source = Checkpoint.open(fp8_source("deepseek_v3", tmp_path / "fp8"))
    values = {entry.name: source.read(entry).float().contiguous() for entry in source.inventory.tensors()}
    plain = tmp_path / "plain"
    plain.mkdir()
    save_file(values, plain / SINGLE, metadata={"format": "pt"})
    config = json.loads((tmp_path / "fp8" / "config.json").read_bytes())
    del config["quantization_config"]
    (plain / "config.json").write_text(json.dumps({**config, "dtype": "float32"}))
    needs = ("routed_tokens", "gate_norm_moment", "weight_norm")
    ours, theirs = (
        StreamedPass(checkpoint, SQUARE, needs, Conditions("cpu", "float32")).run()
        for checkpoint in (source, Checkpoint.open(plain))
    )
    for name in needs:
        for one, other in zip(ours[name], theirs[name], strict=True):
            assert (one is None and other is None) or (one == other).all()
    ids = tiny_tokens(1)
    assert torch.equal(load_model(tmp_path / "fp8")(ids).logits, load_model(plain)(ids).logits)


WEIGHT = "model.layers.1.mlp.experts.3.up_proj.weight"
SPOILED: dict[str, tuple[dict[str, torch.Tensor | None], dict[str, Any], str]] = {
    "no scale": ({f"{WEIGHT}_scale_inv": None}, {}, f"mean nothing without {WEIGHT}_scale_inv"),
    "no codes": ({WEIGHT: None}, {}, f"mean nothing without {WEIGHT}"),
    "other blocks": ({}, {"weight_block_size": [32, 32]}, "has shape"),
    "other codes": ({WEIGHT: torch.zeros(32, 64, dtype=torch.int8)}, {}, "holds I8, but fp8 has F8_E4M3"),
    "excepted": ({}, {"modules_to_not_convert": ["experts.3.up_proj"]}, "excepts its module"),
    "excepted layer": ({}, {"modules_to_not_convert": ["model.layers.1"]}, "excepts its module"),
    "no such list": ({}, {"modules_to_not_convert": "lm_head"}, "a list of modules"),
    "no pattern": ({}, {"modules_to_not_convert": ["(lm_head"]}, "names and regular expressions"),
    "one scale": ({}, {"weight_block_size": None}, "two positive integers"),
    "other format": ({}, {"fmt": "e5m2"}, "allowed: e4m3"),
    "other method": ({}, {"quant_method": "bitsandbytes"}, "cannot be read"),
    "no method": ({}, {"quant_method": None}, "cannot be read"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_sources_that_cannot_be_read_are_refused(fault: str, tmp_path: Path) -> None:
    tensors, config, message = SPOILED[fault]
    folder = change(fp8_source("qwen3_moe", tmp_path / "fp8"), tensors, **config)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


def test_codes_without_any_statement_are_refused(tmp_path: Path) -> None:
    folder = fp8_source("qwen3_moe", tmp_path / "fp8")
    config = json.loads((folder / "config.json").read_bytes())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="mean nothing without their scales"):
        Checkpoint.open(folder)


def test_codes_that_are_no_numbers_are_neither_copied_nor_read(tmp_path: Path) -> None:
    folder = fp8_source("qwen3_moe", tmp_path / "fp8")
    codes = load_file(folder / SINGLE)[WEIGHT]
    codes[3, 4] = float("nan")
    source = Checkpoint.open(change(folder, {WEIGHT: codes}))
    with pytest.raises(CheckpointError, match=r"1 of 2048 values of .* are NaN"):
        apply(source, planned(source, *[LayerPlan()] * 3), tmp_path / "out")
    with pytest.raises(CheckpointError, match="are NaN"):
        load_model(folder)


def test_a_config_states_one_way_of_quantising(tmp_path: Path) -> None:
    source = Checkpoint.open(fp8_source("qwen3_moe", tmp_path / "fp8"))
    with pytest.raises(PlanError, match="stored as fp8 already"):
        planned(source, LayerPlan(bits=Quantisation(bits=4, group=16)), LayerPlan(), LayerPlan()).normalised(
            source.inventory
        )


def test_codes_are_not_trained(tmp_path: Path) -> None:
    folder = fp8_source("qwen3_moe", tmp_path / "fp8")
    source, model = Checkpoint.open(folder), load_model(folder)
    with pytest.raises(RefusedError, match="stores as fp8"):
        prepared(model, source, RecoverySettings(kind="lora"), {})
    trained = prepared(model, source, RecoverySettings(kind="router_kd"), {})
    assert trained.parts == tuple(f"model.layers.{layer}.mlp.gate.weight" for layer in range(3))


def test_a_config_alone_tells_what_is_stored(tmp_path: Path) -> None:
    for family in FAMILIES:
        source = Checkpoint.open(fp8_source(family, tmp_path / family))
        assert source.family.inventory(source.config) == source.inventory
