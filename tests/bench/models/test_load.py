"""Compressed checkpoints give the logits of the original with the removed parts switched off."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from bench.applying.apply import apply
from bench.checkpoint import checkpoint as checkpoint_module
from bench.checkpoint.checkpoint import SINGLE, Checkpoint
from bench.families.family import family_of
from bench.models.load import check_loadable, load_model, load_tokenizer, skeleton
from methods.framework.errors import CheckpointError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.bench.applying.test_apply import plans
from tests.support.masking import logits, mask
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_model, tiny_tokens


@pytest.mark.parametrize("kind", ["identity", "equal", "different", "sublayer", "block", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_those_of_the_masked_original(name: str, kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(name))
    plan = plans(checkpoint.inventory)[kind]
    out = apply(checkpoint, plan, tmp_path / "out")
    tokens = tiny_tokens()
    original = logits(tiny_model(name), tokens)
    expected = logits(mask(tiny_model(name), plan), tokens)
    found = logits(load_model(out), tokens)
    if kind == "identity":
        assert torch.equal(found, original)
        return
    assert (expected - original).abs().max() > 1e-3
    assert (found - expected).abs().max() < 1e-5
    if kind == "equal":
        stock = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
        assert torch.equal(logits(stock, tokens), found)
    else:
        with pytest.raises(RuntimeError, match="per-layer attribute"):
            AutoModelForCausalLM.from_pretrained(out)


@pytest.mark.parametrize("name", ["deepseek_v2", "deepseek_v3"])
def test_group_limited_routing_survives_pruning(name: str, tmp_path: Path) -> None:
    groups = {"n_group": 4, "topk_group": 2, "n_routed_experts": 16, "num_experts_per_tok": 3}
    groups |= {"topk_method": "group_limited_greedy"} if name == "deepseek_v2" else {}
    checkpoint = Checkpoint.open(tiny_checkpoint(name, **groups))
    keep = LayerPlan(experts=(0, 3, 4, 7, 9, 10, 14, 15))
    plan = Plan.of(checkpoint.inventory, [LayerPlan(), keep, keep])
    out = apply(checkpoint, plan, tmp_path / "out")
    tokens = tiny_tokens()
    expected = logits(mask(tiny_model(name, **groups), plan), tokens)
    assert (logits(load_model(out), tokens) - expected).abs().max() < 1e-5


def test_dropped_layers_of_a_model_with_dense_ones(tmp_path: Path) -> None:
    shape = {"num_hidden_layers": 6, "decoder_sparse_step": 2, "mlp_only_layers": [3]}
    checkpoint = Checkpoint.open(tiny_checkpoint("qwen2_moe", **shape))
    drop, keep = LayerPlan(drop="block"), LayerPlan()
    plan = Plan.of(checkpoint.inventory, [keep, LayerPlan(experts=(1, 2)), drop, keep, drop, LayerPlan(experts=(0, 5))])
    out = apply(checkpoint, plan, tmp_path / "out")
    tokens = tiny_tokens()
    expected = logits(mask(tiny_model("qwen2_moe", **shape), plan), tokens)
    stock = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    assert (logits(stock, tokens) - expected).abs().max() < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_different_model_generates_saves_and_compresses_further(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(name))
    out = apply(checkpoint, plans(checkpoint.inventory)["different"], tmp_path / "out")
    model = load_model(out)
    prompt = tiny_tokens(2, 6)
    with torch.no_grad():
        cached = model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None)
        plain = model.generate(prompt, max_new_tokens=5, do_sample=False, eos_token_id=None, use_cache=False)
    assert torch.equal(cached, plain)
    model.set_experts_implementation("eager")
    assert all(
        module.config._experts_implementation == "eager" for module in model.modules() if hasattr(module, "has_gate")
    )
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(load_model(tmp_path / "saved"), prompt), logits(model, prompt))
    again = Checkpoint.open(tmp_path / "saved")
    keep = LayerPlan(experts=(0, 3))
    if name == "deepseek_v3":
        return  # its two groups leave no smaller equal choice with top-2 of one group
    plan = Plan.of(again.inventory, [LayerPlan(), keep, keep])
    further = apply(again, plan, tmp_path / "further")
    expected = logits(mask(load_model(tmp_path / "saved"), plan), prompt)
    assert (logits(load_model(further), prompt) - expected).abs().max() < 1e-5


def test_a_checkpoint_is_opened_and_parsed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By us; transformers reads its own config and weights, in another way."""
    folder, seen = tiny_checkpoint("olmoe"), []
    read_config, read_headers = checkpoint_module.read_config, checkpoint_module.read_headers
    monkeypatch.setattr(checkpoint_module, "read_config", lambda path: seen.append("config.json") or read_config(path))
    monkeypatch.setattr(
        checkpoint_module, "read_headers", lambda path, hub: seen.append("headers") or read_headers(path)
    )
    load_model(folder)
    assert seen == ["config.json", "headers"]


@pytest.mark.parametrize("unchecked", [False, True], ids=["headers", "loading"])
def test_no_weight_is_ever_initialised_silently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unchecked: bool
) -> None:
    """Headers are compared first; what transformers reports after loading is compared even without that."""
    folder = tiny_checkpoint("qwen3_moe", tmp_path)
    if unchecked:
        checkpoint = Checkpoint.open(folder)
        monkeypatch.setattr(Checkpoint, "open", lambda *_: checkpoint)
    whole = load_file(folder / SINGLE)
    norm = "model.layers.1.self_attn.q_norm.weight"

    def load(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
        load_model(folder)

    load({**whole, "model.rotary_emb.inv_freq": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=f"missing: {norm}" if unchecked else f"lacks 1 tensors .*{norm}"):
        load({k: v for k, v in whole.items() if k != norm})
    with pytest.raises(CheckpointError, match=r"model\.extra\.weight"):
        load({**whole, "model.extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=f"shape: .*{norm}" if unchecked else f"{norm} has shape"):
        load({**whole, norm: torch.zeros(3)})


def test_the_skeleton_has_no_weights_and_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint("mixtral", tie_word_embeddings=True))
    assert all(parameter.is_meta for parameter in skeleton(checkpoint).parameters())
    check_loadable(checkpoint)
    shapes = checkpoint.family.module_shapes(checkpoint.inventory)
    monkeypatch.setattr(type(checkpoint.family), "module_shapes", lambda *_: {**shapes, "model.norm.weight": (3,)})
    with pytest.raises(CheckpointError, match=r"differ in model\.norm\.weight"):
        check_loadable(checkpoint)


def test_a_family_without_transformers_class_and_a_missing_tokenizer_say_so(tmp_path: Path) -> None:
    config = {"model_type": "deepseek", "n_routed_experts": 4, "num_experts_per_tok": 2, "hidden_size": 8}
    sizes = {"vocab_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "moe_intermediate_size": 4}
    config |= {**sizes, "n_shared_experts": 1, "intermediate_size": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = family_of(config).inventory(config).tensors()
    save_file({entry.name: torch.zeros(entry.shape) for entry in tensors}, tmp_path / SINGLE)
    with pytest.raises(CheckpointError, match="no model class for family deepseek_moe"):
        load_model(tmp_path)
    with pytest.raises(CheckpointError, match="its vocabulary is missing"):
        load_tokenizer(tmp_path)
