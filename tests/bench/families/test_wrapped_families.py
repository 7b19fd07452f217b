"""Language models within larger ones: they are compressed, all else stays, and stock transformers loads the whole again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import family_named, family_of
from bench.families.wrapped_config import language_config, rewrapped
from bench.models.load import load_model
from bench.models.tiny import RUNNABLE
from methods.framework.errors import CheckpointError
from methods.framework.inventory import PASSED_ROLE
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.tiny import tiny_checkpoint, tiny_tokens

WRAPPED = tuple(name for name in RUNNABLE if family_named(name).file.wrapper is not None)


def plan_of(source: Checkpoint) -> Plan:
    """Return a plan that leaves out one layer and keeps other experts in each of the others."""
    layers = [LayerPlan(drop="block"), LayerPlan(experts=(0, 2, 3, 6)), LayerPlan(experts=(1, 2, 4, 7))]
    sparse = [plan if place in source.inventory.moe_layers else LayerPlan() for place, plan in enumerate(layers)]
    return Plan.of(source.inventory, [layers[0], *sparse[1:]])


@pytest.mark.parametrize("name", WRAPPED)
def test_stock_transformers_loads_what_is_written_with_all_else_untouched(name: str, tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint(name))
    wrapper = source.family.file.wrapper
    assert wrapper is not None
    plan, tokens = plan_of(source), tiny_tokens(2, 16, seed=1)
    out = apply(source, plan, tmp_path / "out")
    stock, info = getattr(transformers, wrapper.architecture).from_pretrained(out, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    model = load_model(source.path)
    with torch.no_grad():
        found = stock.eval()(tokens).logits
        with realised(model, source.inventory, plan):
            assert (model(tokens).logits - found).abs().max() <= 1e-5
        assert (model(tokens).logits - found).abs().max() > 1e-3
    before, after = (load_file(folder / "model.safetensors") for folder in (source.path, out))
    passed = [entry.name for entry in source.inventory.tensors() if entry.role == PASSED_ROLE]
    assert len(passed) > 10 and all(torch.equal(before[key], after[key]) for key in passed)
    old, new = (json.loads((folder / "config.json").read_text()) for folder in (source.path, out))
    inner_old, inner_new = old.pop(wrapper.config), new.pop(wrapper.config)
    assert new == old
    keys = source.family.file.keys
    assert (inner_new[keys.layers], inner_new[keys.experts[0]]) == (2, 4)
    assert inner_new.keys() <= {*inner_old, *source.family.file.result, *keys.experts}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_larger_model_without_its_other_parts_is_refused(name: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint(name, tmp_path / name)
    wrapper = family_named(name).file.wrapper
    assert wrapper is not None
    tensors = load_file(folder / "model.safetensors")
    names = {entry.name for entry in Checkpoint.open(folder).inventory.tensors() if entry.role == PASSED_ROLE}
    save_file({key: value for key, value in tensors.items() if key not in names}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="more than a language model"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("name", WRAPPED)
def test_a_config_that_contradicts_its_wrapper_is_refused(name: str) -> None:
    wrapper = family_named(name).file.wrapper
    assert wrapper is not None
    config = json.loads((tiny_checkpoint(name) / "config.json").read_text())
    inner = config[wrapper.config]
    tied = not config["tie_word_embeddings"]
    changes: tuple[tuple[dict[str, Any], str], ...] = (
        ({wrapper.config: None}, "holds the config of its language model under"),
        ({wrapper.config: {**inner, "model_type": "llama"}}, f"with {wrapper.config} of 'llama'"),
        ({wrapper.config: {**inner, "tie_word_embeddings": tied}}, "make them agree"),
        ({wrapper.config: {**inner, family_named(name).file.keys.layers: -1}}, "allowed: an integer"),
    )
    assert family_of(config).name == name
    for change, words in changes:
        with pytest.raises(CheckpointError, match=words):
            family_of({**config, **change})


def test_what_stood_within_is_written_within_again() -> None:
    file = family_named("kimi_k2").file
    inner = {"model_type": "deepseek_v3", "num_hidden_layers": 2, "quantization_config": {"quant_method": "fp8"}}
    config = {"model_type": "kimi_k25", "architectures": ["Other"], "text_config": inner}
    written = {**language_config(file, config), "num_hidden_layers": 1, "quantization_config": {"quant_method": "none"}}
    found = rewrapped(file, config, written)
    assert found == {
        **config,
        "text_config": {**inner, "num_hidden_layers": 1, "quantization_config": {"quant_method": "none"}},
    }


def test_a_language_model_saved_alone_may_keep_its_longer_names(tmp_path: Path) -> None:
    folder = tiny_checkpoint("qwen3_5_moe", tmp_path / "source")
    whole = load_model(folder)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    tensors = {key: value for key, value in tensors.items() if not key.startswith("model.visual.")}
    fused = "model.language_model.layers.1.mlp.experts."
    matrices = {
        part: [tensors.pop(f"{fused}{expert}.{part}_proj.weight") for expert in range(8)]
        for part in ("gate", "up", "down")
    }
    both = [torch.cat(pair) for pair in zip(matrices["gate"], matrices["up"], strict=True)]
    tensors |= {f"{fused}gate_up_proj": torch.stack(both), f"{fused}down_proj": torch.stack(matrices["down"])}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config["text_config"], "architectures": config["architectures"]}))
    source = Checkpoint.open(folder)
    out = apply(source, Plan.identity(source.inventory), tmp_path / "out")
    stock, info = transformers.Qwen3_5MoeForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not (info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"])
    tokens = tiny_tokens(2, 16, seed=1)
    with torch.no_grad():
        assert torch.equal(stock.eval()(tokens).logits, whole(tokens).logits)
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Qwen3_5MoeForCausalLM"]
