"""gpt-oss: experts in four bits stay as they are, biases are merged with their channels, and what cannot be is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bench.applying.apply import apply
from bench.applying.in_memory import realised
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.text.corpus import Corpus
from methods.framework.errors import CheckpointError, RefusedError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.registry import method_class
from tests.support.family_reference import gate_norm_moments
from tests.support.tiny import tiny_checkpoint, tiny_tokens

KEEP = (1, 2, 4, 7)
STATED = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": [
        "model.layers.*.self_attn",
        "model.layers.*.mlp.router",
        "model.embed_tokens",
        "lm_head",
    ],
}


def in_four_bits(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Write a checkpoint as it is published: codes and scales of all experts, everything else as values."""
    tiny_checkpoint("gpt_oss", folder, dtype=torch.bfloat16)
    held = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(3)
    for name in [name for name in held if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        experts, columns, rows = held.pop(name).shape
        held[f"{name}_blocks"] = torch.randint(256, (experts, rows, columns // 32, 16), generator=draw).to(torch.uint8)
        scales = torch.randint(118, 123, (experts, rows, columns // 32), generator=draw)
        held[f"{name}_scales"] = scales.to(torch.uint8)
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": STATED}))
    return folder, held


def test_experts_in_four_bits_are_copied_with_codes_scales_and_biases(tmp_path: Path) -> None:
    folder, before = in_four_bits(tmp_path / "source")
    source, tokens = Checkpoint.open(folder), tiny_tokens(2, 16, seed=1)
    plan = Plan.of(source.inventory, [LayerPlan(experts=KEEP), LayerPlan(drop="block"), LayerPlan(experts=KEEP)])
    out = apply(source, plan, tmp_path / "out")
    after = load_file(out / "model.safetensors")
    places = {0: 0, 2: 1}
    for old, new in places.items():
        names = [name for name in before if f"layers.{old}.mlp." in name]
        assert len(names) == 8
        for name in names:
            assert torch.equal(after[name.replace(f"layers.{old}.", f"layers.{new}.")], before[name][list(KEEP)]), name
    stated = json.loads((out / "config.json").read_text())
    assert stated["quantization_config"] == STATED and stated["num_local_experts"] == 4
    model, written = load_model(folder), load_model(out)
    with torch.no_grad(), realised(model, source.inventory, plan):
        assert (model(tokens).logits - written(tokens).logits).abs().max() <= 1e-5


def test_values_and_statistics_are_those_of_transformers(tmp_path: Path) -> None:
    folder, held = in_four_bits(tmp_path / "source")
    source = Checkpoint.open(folder)
    stem = "model.layers.1.mlp.experts.gate_up_proj"
    whole = convert_moe_packed_tensors(held[f"{stem}_blocks"], held[f"{stem}_scales"], dtype=torch.float32)
    for entry in source.inventory.layers[1].with_role("expert.gate", "expert.up"):
        columns = whole[entry.expert][:, int(entry.role == "expert.up") :: 2]
        assert torch.equal(source.read(entry), columns.T), entry.name
    windows = tiny_tokens(2).tolist()
    model = load_model(folder, experts_implementation="eager")
    measured = calibrate(source, Corpus.of(windows, "random ids"), {"gate_norm_moment"})
    for layer, expected in gate_norm_moments(model, source, windows).items():
        found = measured.layer("gate_norm_moment", layer)
        assert np.array_equal(found[:, 0, 0], expected[:, 0, 0])
        assert (np.abs(found - expected) / np.abs(expected).max(axis=0)).max() <= 1e-6


@pytest.mark.parametrize("kernel", ["mean", "aligned"])
def test_merged_experts_have_merged_biases(kernel: str, tmp_path: Path) -> None:
    folder, _ = in_four_bits(tmp_path / "source")
    source, tokens = Checkpoint.open(folder), tiny_tokens(2, 16, seed=1)
    merge = Merge(into=2, members=(0, 2, 5), weights=(0.25, 0.5, 0.25), kernel=kernel)
    layer = LayerPlan(experts=KEEP, merges=(merge,))
    plan = Plan.of(source.inventory, [LayerPlan(), layer, LayerPlan()])
    out = apply(source, plan, tmp_path / "out")
    stated = json.loads((out / "config.json").read_text())["quantization_config"]
    assert "model.layers.1.mlp.experts" in stated["modules_to_not_convert"]
    assert Checkpoint.open(out).inventory.layers[1].biased
    model, before = load_model(folder), load_file(folder / "model.safetensors")
    with torch.no_grad():
        untouched = model(tokens).logits
        with realised(model, source.inventory, plan):
            assert (model(tokens).logits - load_model(out)(tokens).logits).abs().max() <= 1e-5
        assert torch.equal(model(tokens).logits, untouched)
    name = "model.layers.1.mlp.experts.down_proj_bias"
    bias = before[name].float()
    expected = 0.25 * bias[0] + 0.5 * bias[2] + 0.25 * bias[5]
    assert torch.allclose(load_file(out / "model.safetensors")[name][1].float(), expected, atol=2e-2)


def test_what_would_need_another_form_is_refused() -> None:
    inventory = Checkpoint.open(tiny_checkpoint("gpt_oss")).inventory
    for name in ("whitened_svd", "rtn", "camera_p", "wanda"):
        with pytest.raises(RefusedError, match="have biases"):
            method_class(name)().plan(inventory, Stats({}, 0))


def test_two_counts_of_experts_a_token_must_agree(tmp_path: Path) -> None:
    folder = tiny_checkpoint("gpt_oss", tmp_path / "source")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "experts_per_token": 4}))
    with pytest.raises(CheckpointError, match="make them agree"):
        Checkpoint.open(folder)
