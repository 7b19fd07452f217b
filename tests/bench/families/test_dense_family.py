"""A family without experts: its decoder layers and feed-forward sub-layers can be dropped, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import family_named
from bench.families.family_file import read_family_file
from bench.models.load import check_loadable, load_model
from bench.models.tiny import tiny_tokens
from bench.text.corpus import Corpus
from methods.block_drop import BlockDrop
from methods.framework.cost import cost_of
from methods.framework.errors import ConfigError, PlanError, RefusedError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.layer_drop import LayerDrop
from methods.registry import method_class
from tests.support.places import ROOT
from tests.support.tiny import tiny_checkpoint

TOKENS = tiny_tokens(2, 16, seed=1)
GONE = LayerPlan(drop="moe")
BLOCK = LayerPlan(drop="block")


@pytest.fixture(scope="module")
def dense() -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint("mistral"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(TOKENS).logits
    return found


def without(path: Path, networks: Sequence[int] = (), blocks: Sequence[int] = ()) -> torch.Tensor:
    """Return the logits of stock transformers with some networks giving zeros and some decoder layers left out."""
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    for layer in networks:
        model.model.layers[layer].mlp.register_forward_hook(lambda module, given, output: torch.zeros_like(output))
    model.model.layers = torch.nn.ModuleList(
        layer for place, layer in enumerate(model.model.layers) if place not in blocks
    )
    model.config.num_hidden_layers -= len(blocks)
    for place, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = place
    return logits(model)


@pytest.mark.parametrize("variant", [False, True], ids=["plain", "variant"])
def test_what_transformers_writes_is_what_the_file_says(variant: bool) -> None:
    folder = tiny_checkpoint("mistral", **(family_named("mistral").file.variant if variant else {}))
    checkpoint = Checkpoint.open(folder)
    check_loadable(checkpoint)
    assert [layer.mlp for layer in checkpoint.inventory.layers] == ["dense"] * 3
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert cost_of(checkpoint.inventory).parameters == sum(one.numel() for one in model.parameters())


def test_a_dropped_network_is_stated_and_read_again(dense: Checkpoint, tmp_path: Path) -> None:
    plan = Plan.of(dense.inventory, [LayerPlan(), GONE, LayerPlan()])
    out = apply(dense, plan, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    assert config["per_layer_config"] == {"1": {"intermediate_size": 0}}
    assert config["architectures"] == ["MoebenchMistralForCausalLM"], "stock code would fill the network at random"
    checkpoint = Checkpoint.open(out)
    check_loadable(checkpoint)
    expected = without(dense.path, networks=[1])
    assert torch.equal(logits(load_model(out)), expected)
    model = load_model(dense.path)
    with realised(model, dense.inventory, plan):
        assert torch.allclose(logits(model), expected, atol=1e-6)
    assert [layer.mlp for layer in checkpoint.inventory.layers] == ["dense", "none", "dense"]
    again = apply(checkpoint, Plan.of(checkpoint.inventory, [GONE, LayerPlan(), LayerPlan()]), tmp_path / "again")
    assert torch.equal(logits(load_model(again)), without(dense.path, networks=[0, 1]))


def test_dropped_blocks_leave_a_stock_model(dense: Checkpoint, tmp_path: Path) -> None:
    out = apply(dense, Plan.of(dense.inventory, [LayerPlan(), BLOCK, LayerPlan()]), tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(out)), without(dense.path, blocks=[1]))


def test_layer_and_block_drop_take_what_turns_its_input_least(dense: Checkpoint) -> None:
    seen: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def see(module: Any, given: Any, output: torch.Tensor) -> None:
        seen.append((residuals.pop(), given[0], output))

    model: Any = AutoModelForCausalLM.from_pretrained(dense.path)
    residuals: list[torch.Tensor] = []
    for layer in model.model.layers:
        layer.post_attention_layernorm.register_forward_pre_hook(lambda module, given: residuals.append(given[0]))
        layer.mlp.register_forward_hook(see)
    logits(model)
    stats = calibrate(dense, Corpus.of(TOKENS.tolist()), {"moe_residual_cosine", "moe_io_cosine", "block_cosine"})
    cosine = torch.nn.functional.cosine_similarity
    for layer, (x, h, y) in enumerate(seen):
        assert float(stats.layer("moe_io_cosine", layer)) == pytest.approx(float(cosine(h, y, -1).mean()), abs=1e-5)
        told = float(stats.layer("moe_residual_cosine", layer))
        assert told == pytest.approx(float(cosine(x, x + y, -1).mean()), abs=1e-5)
    most = max(range(3), key=lambda layer: float(stats.layer("moe_residual_cosine", layer)))
    assert [layer.drop for layer in LayerDrop(keep=0.67).plan(dense.inventory, stats).layers].index("moe") == most
    assert sum(layer.drop == "block" for layer in BlockDrop(keep=0.34).plan(dense.inventory, stats).layers) == 2


def test_methods_for_experts_do_not_apply(dense: Checkpoint) -> None:
    for name in ("frequency", "cka_merge", "svd", "rtn"):
        with pytest.raises(RefusedError, match="the model has no MoE layer"):
            method_class(name)().plan(dense.inventory, Stats({}))
    with pytest.raises(PlanError, match="there are no experts to change"):
        Plan.of(dense.inventory, [LayerPlan(experts=(0,)), LayerPlan(), LayerPlan()])


def test_the_dense_layers_of_a_model_with_experts_stay() -> None:
    inventory = Checkpoint.open(tiny_checkpoint("deepseek_v2")).inventory
    assert inventory.layers[0].mlp == "dense" and inventory.droppable_layers == inventory.moe_layers
    with pytest.raises(PlanError, match="layer 0: its feed-forward sub-layer is 'dense'"):
        Plan.of(inventory, [GONE, *[LayerPlan()] * (len(inventory.layers) - 1)])


@pytest.mark.parametrize(
    ("name", "old", "new"), [("mistral", "dense = true", ""), ("mixtral", "laws = ", "dense = true\nlaws = ")]
)
def test_a_file_says_whether_there_are_experts(name: str, old: str, new: str, tmp_path: Path) -> None:
    text = (ROOT / "bench" / "families" / f"{name}.toml").read_text()
    (tmp_path / f"{name}.toml").write_text(text.replace(old, new, 1))
    with pytest.raises(ConfigError, match=r"a family states tensors\.moe and tensors\.fused"):
        read_family_file(tmp_path / f"{name}.toml")
