"""Sources in integers, packed by compressed-tensors or GPTQ: values are the library's, what stays is copied bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from safetensors.torch import load_file, save_file

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import SINGLE, Checkpoint
from bench.checkpoint.dequantised import dequantised
from bench.families.source_formats import stored_formats
from bench.families.stored_formats import holds_values
from bench.models.load import load_model
from methods.framework.errors import CheckpointError
from methods.framework.inventory import TensorEntry
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import result
from tests.support.quantised_sources import (
    gptq_config,
    gptq_encoded,
    grouped,
    packed_config,
    packed_encoded,
    quantised,
    words,
)
from tests.support.tiny import tiny_tokens

VALUE_MN = torch.randn(24, 64, generator=torch.Generator().manual_seed(0))
KEEP = (0, 2, 5, 7)


def values(config: dict[str, Any], stored: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return what ``stored`` stands for, read as a matrix of the shape of ``VALUE_MN``."""
    formats = stored_formats({"quantization_config": config})
    assert formats is not None
    storage = formats.schemes[0][0].storage((24, 64))
    assert {piece.name: piece.shape for piece in storage.pieces} == {k: tuple(v.shape) for k, v in stored.items()}
    entry = TensorEntry("w.weight", "expert.gate", (24, 64), "BF16", stored=storage)
    return dequantised(entry, [stored[piece.name] for piece in storage.pieces])


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [3, 4, 8])
def test_packed_values_are_those_of_the_library(bits: int, symmetric: bool, ordered: bool) -> None:
    config = packed_config(bits, 16, symmetric, actorder="group" if ordered else None)
    stored = packed_encoded(bits, 16, symmetric, ordered)(VALUE_MN)
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    theirs = PackedQuantizationCompressor.decompress(stored, scheme)["weight"]
    ours = values(config, stored)
    assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype == torch.bfloat16
    if not symmetric and bits > 3:
        assert (ours - VALUE_MN).abs().max() < 0.5


def test_one_scale_for_a_row() -> None:
    config = packed_config(8, 16, strategy="channel", group_size=None)
    stored = packed_encoded(8, 64, True)(VALUE_MN)
    theirs = PackedQuantizationCompressor.decompress(stored, QuantizationScheme(**config["config_groups"]["group_0"]))
    assert torch.equal(values(config, stored), theirs["weight"])


@pytest.mark.parametrize(("form", "less"), [("gptq", 1), ("gptq_v2", 0)])
@pytest.mark.parametrize(("group", "ordered"), [(16, False), (16, True), (-1, False)])
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_values_are_codes_less_zeros_times_scales(
    bits: int, group: int, ordered: bool, form: str, less: int
) -> None:
    stored = gptq_encoded(bits, group, less, ordered)(VALUE_MN)
    order_N = stored["g_idx"].long()
    codes_MN, _, zero_MG = grouped(VALUE_MN, bits, order_N, int(order_N.max()) + 1)
    scale_MG = stored["scales"].T.contiguous()
    sign = 1 << (bits - 1)
    theirs = dequantize(
        (codes_MN - sign).to(torch.int8), scale_MG, (zero_MG - sign).to(torch.int8), g_idx=order_N if ordered else None
    )
    ours = values(gptq_config(bits, group, checkpoint_format=form), stored)
    assert torch.equal(ours, theirs) and ours.dtype == torch.float16


SOURCES: dict[str, tuple[str, dict[str, Any], Any]] = {
    "packed": ("deepseek_v3", packed_config(), packed_encoded(4, 16, True)),
    "packed with zeros": ("qwen3_moe", packed_config(symmetric=False), packed_encoded(4, 16, False)),
    "gptq": ("qwen3_moe", gptq_config(), gptq_encoded(4, 16)),
}


def source(kind: str, folder: Path, **more: Any) -> Checkpoint:
    family, config, encode = SOURCES[kind]
    return Checkpoint.open(quantised(family, folder, {**config, **more}, encode))


@pytest.mark.parametrize("kind", SOURCES)
def test_what_stays_is_the_same_bytes_and_runs(kind: str, tmp_path: Path) -> None:
    opened = source(kind, tmp_path / "source")
    dense = opened.inventory.layers[0].mlp == "dense"
    some = LayerPlan(experts=KEEP)
    plan = Plan.of(opened.inventory, [LayerPlan() if dense else some, some, some])
    out = apply(opened, plan, tmp_path / "out")
    before, after = load_file(tmp_path / "source" / SINGLE), load_file(out / SINGLE)
    for name, value in after.items():
        parts = name.split(".")
        if "experts" in parts:
            parts[5] = str(KEEP[int(parts[5])])
            assert torch.equal(value, before[".".join(parts)])
    assert any("experts" in name and name.endswith(("packed", "qweight")) for name in after)
    stated = json.loads((out / "config.json").read_bytes())["quantization_config"]
    assert stated == SOURCES[kind][1]
    model, written = load_model(out), Checkpoint.open(out)
    assert written.family.inventory(written.config).layers == written.inventory.layers or kind == "gptq"
    for entry in written.inventory.layers[1].tensors:
        if entry.role == "expert.up":
            place = written.family.placement(entry)
            assert torch.equal(place.within(model.get_parameter(place.name)), written.read(entry).float())
    assert torch.isfinite(model(tiny_tokens(1)).logits).all()


@pytest.mark.parametrize("kind", SOURCES)
def test_merged_layers_are_excepted(kind: str, tmp_path: Path) -> None:
    opened = source(kind, tmp_path / "source")
    pair = Merge(into=2, members=(2, 3), weights=(0.5, 0.5))
    merged = LayerPlan(experts=(0, 1, 2, 4, 5, 6, 7), merges=(pair,))
    fewer = LayerPlan(experts=(0, 1, 2, 4, 5, 6, 7))
    dense = opened.inventory.layers[0].mlp == "dense"
    grouped_router = opened.inventory.router.groups > 1
    if grouped_router:
        merged, fewer = merged.model_copy(update={"router": "map"}), LayerPlan()
    out = apply(opened, Plan.of(opened.inventory, [LayerPlan() if dense else fewer, merged, fewer]), tmp_path / "out")
    stated = json.loads((out / "config.json").read_bytes())["quantization_config"]
    experts = r"model\.layers\.1\.mlp\.experts"
    if kind == "gptq":
        assert stated == {**SOURCES[kind][1], "dynamic": {f"-:{experts}": {}}}
    else:
        assert stated == {**SOURCES[kind][1], "ignore": ["lm_head", "re:.*mlp.gate$", rf"re:{experts}\..*"]}
    written = Checkpoint.open(out)
    kept = {
        entry.layer for entry in written.inventory.tensors() if entry.expert is not None and not holds_values(entry)
    }
    assert kept == ({2} if dense else {0, 2})


def test_layers_that_go_take_their_patterns_along(tmp_path: Path) -> None:
    patterns = {r"-:model\.layers\.2\.self_attn": {}, "-:.*norm": {}}
    config = gptq_config(dynamic=patterns)
    folder = quantised(
        "qwen3_moe", tmp_path / "source", config, gptq_encoded(4, 16), lambda name: "layers.2.self_attn" in name
    )
    opened = Checkpoint.open(folder)
    plan = Plan.of(opened.inventory, [LayerPlan(drop="block"), LayerPlan(), LayerPlan()])
    stated = opened.family.config_for(opened.config, plan, result(plan, opened.inventory))["quantization_config"]
    attention = {rf"-:model\.layers\.1\.self_attn\.{name}_proj": {} for name in "qkvo"}
    assert stated["dynamic"] == {"-:.*norm": {}, **attention}


def test_modules_are_told_by_the_target_of_their_group(tmp_path: Path) -> None:
    config = packed_config()
    scheme = config["config_groups"]["group_0"]
    config["config_groups"] = {"experts": {**scheme, "targets": ["re:.*mlp.experts.*"]}}
    folder = quantised(
        "qwen3_moe", tmp_path / "source", config, packed_encoded(4, 16, True), lambda name: "experts" not in name
    )
    opened = Checkpoint.open(folder)
    assert {entry.role for entry in opened.inventory.tensors() if entry.stored} == {
        "expert.gate",
        "expert.up",
        "expert.down",
    }
    assert opened.family.inventory(opened.config) == opened.inventory


WEIGHT = "model.layers.1.mlp.experts.3.up_proj"
SPOILED: dict[str, tuple[str, dict[str, torch.Tensor | None], dict[str, Any], str]] = {
    "no scale": ("packed", {f"{WEIGHT}.weight_scale": None}, {}, "mean nothing without"),
    "no zeros": ("packed with zeros", {f"{WEIGHT}.weight_zero_point": None}, {}, "mean nothing without"),
    "no order": ("gptq", {f"{WEIGHT}.g_idx": None}, {}, "mean nothing without"),
    "other words": ("packed", {f"{WEIGHT}.weight_packed": torch.zeros(32, 8)}, {}, "holds F32"),
    "other group": ("gptq", {}, {"group_size": 32}, "has shape"),
    "not whole": ("gptq", {}, {"group_size": 2.5}, "a positive integer"),
    "other bits": ("gptq", {}, {"bits": 5}, "2, 4 or 8"),
    "other form": ("gptq", {}, {"checkpoint_format": "marlin"}, "gptq or gptq_v2"),
    "own bits": ("gptq", {}, {"dynamic": {"+:.*": {"bits": 8}}}, "left out"),
    "other format": ("packed", {}, {"format": "marlin-24"}, "pack-quantized"),
    "not compressed": ("packed", {}, {"quantization_status": "frozen"}, "allowed: compressed"),
    "excepted": ("packed", {}, {"ignore": ["re:.*experts.*"]}, "excepts its module"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_sources_that_cannot_be_read_are_refused(fault: str, tmp_path: Path) -> None:
    kind, tensors, more, message = SPOILED[fault]
    family, config, encode = SOURCES[kind]
    folder = quantised(family, tmp_path / "source", {**config, **more}, encode)
    held = {**load_file(folder / SINGLE), **tensors}
    save_file({k: v for k, v in held.items() if v is not None}, folder / SINGLE, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("kind", "piece", "value", "message"),
    [
        ("packed", "weight_shape", torch.tensor([64, 32]), "weight_shape of"),
        ("gptq", "g_idx", torch.full((64,), 4, dtype=torch.int32), "an input in group 4"),
    ],
)
def test_pieces_that_contradict_each_other_are_not_read(
    kind: str, piece: str, value: torch.Tensor, message: str, tmp_path: Path
) -> None:
    folder = source(kind, tmp_path / "source").path
    held = {**load_file(folder / SINGLE), f"{WEIGHT}.{piece}": value}
    save_file(held, folder / SINGLE, metadata={"format": "pt"})
    opened = Checkpoint.open(folder)
    entry = next(entry for entry in opened.inventory.tensors() if entry.name == f"{WEIGHT}.weight")
    with pytest.raises(CheckpointError, match=message):
        opened.read(entry)


def test_words_are_packed_from_the_lowest_bits() -> None:
    assert words(torch.tensor([[1, 2, 3, 0, 0, 0, 0, 15]]), 4).tolist() == [[0x321 - (1 << 28)]]
