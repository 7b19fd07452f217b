"""Sources in floats of four bits, NVFP4 and MXFP4: values are those of the libraries, what stays is copied bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.compressors.mxfp4.base import MXFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.base import NVFP4PackedCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import SINGLE, Checkpoint
from bench.checkpoint.dequantised import dequantised
from bench.families.four_bit_floats import mxfp4, mxfp4_fused, nvfp4, nvfp4_modelopt
from bench.families.stored_formats import Scheme
from methods.framework.errors import CheckpointError, PlanError
from methods.framework.inventory import TensorEntry
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.quantised_sources import quantised
from tests.support.tiny import tiny_checkpoint

ROWS, COLUMNS = 24, 64
KEEP = (0, 2, 5, 7)
Tensors = dict[str, torch.Tensor]


def drawn(scheme: Scheme, rows: int = ROWS, columns: int = COLUMNS, seed: int = 0) -> Tensors:
    """Return every code somewhere, and scales of many sizes, in the shapes of ``scheme``."""
    random = torch.Generator().manual_seed(seed)
    found = {}
    for piece in scheme.make(rows, columns):
        if piece.dtype == "F8_E4M3":
            found[piece.name] = (torch.rand(piece.shape, generator=random) * 30 + 0.1).to(torch.float8_e4m3fn)
        elif piece.dtype == "F32":
            found[piece.name] = torch.rand(piece.shape, generator=random) + 0.3
        elif "scale" in piece.name:
            found[piece.name] = torch.randint(110, 128, piece.shape, generator=random).to(torch.uint8)
        else:
            found[piece.name] = torch.randint(256, piece.shape, generator=random).to(torch.uint8)
    return found


def values(scheme: Scheme, stored: Tensors) -> torch.Tensor:
    entry = TensorEntry("w.weight", "expert.gate", (ROWS, COLUMNS), "BF16", stored=scheme.storage((ROWS, COLUMNS)))
    return dequantised(entry, list(stored.values()))


def ct_scheme(group: int) -> QuantizationScheme:
    weights = {
        "num_bits": 4,
        "type": "float",
        "strategy": "tensor_group" if group == 16 else "group",
        "group_size": group,
    }
    return QuantizationScheme(targets=["Linear"], weights=weights)


def test_nvfp4_values_are_those_of_compressed_tensors() -> None:
    stored = drawn(nvfp4())
    theirs = NVFP4PackedCompressor.decompress(stored, ct_scheme(16))["weight"]
    assert theirs.dtype == torch.bfloat16 and theirs.unique().numel() > 100
    assert torch.equal(values(nvfp4(), stored).to(torch.bfloat16), theirs)


def test_nvfp4_of_modelopt_is_multiplied_by_its_second_scale() -> None:
    stored = drawn(nvfp4_modelopt())
    found = values(nvfp4_modelopt(), stored)
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    for row in range(ROWS):
        for column in range(COLUMNS):
            code = int(stored["weight"][row, column // 2]) >> (4 * (column % 2)) & 15
            scale = stored["weight_scale"][row, column // 16].float() * stored["weight_scale_2"]
            assert found[row, column] == (-1 if code & 8 else 1) * table[code & 7] * scale


def test_mxfp4_values_are_those_of_compressed_tensors_and_transformers() -> None:
    stored = drawn(mxfp4())
    theirs = MXFP4PackedCompressor.decompress(stored, ct_scheme(32))["weight"]
    found = values(mxfp4(), stored)
    assert torch.equal(found.to(torch.bfloat16), theirs) and torch.equal(found, theirs.float())
    blocks = stored["weight_packed"].view(1, ROWS, COLUMNS // 32, 16)
    other = convert_moe_packed_tensors(blocks, stored["weight_scale"].unsqueeze(0), dtype=torch.float32)
    assert torch.equal(found, other[0].T)
    assert torch.equal(found, values(mxfp4_fused(), {"blocks": blocks[0].flatten(1), "scales": stored["weight_scale"]}))


def group_config(kind: str, group: int) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "type": "float", "group_size": group}}
        },
        "ignore": ["lm_head"],
    }


MODELOPT = {"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16}
SOURCES = {
    "nvfp4": (nvfp4(), group_config("nvfp4-pack-quantized", 16)),
    "mxfp4": (mxfp4(), group_config("mxfp4-pack-quantized", 32)),
    "modelopt": (nvfp4_modelopt(), {**MODELOPT, "ignore": ["lm_head", "model.layers.*.mlp.gate"]}),
}


def source(kind: str, folder: Path) -> Path:
    scheme, config = SOURCES[kind]
    return quantised("qwen3_moe", folder, config, lambda value: drawn(scheme, *value.shape))


@pytest.mark.parametrize("kind", SOURCES)
def test_what_stays_is_the_same_bytes(kind: str, tmp_path: Path) -> None:
    folder = source(kind, tmp_path / "source")
    beside = {"model.layers.1.self_attn.k_proj.k_scale": torch.tensor(0.5)} if kind == "modelopt" else {}
    before = {**load_file(folder / SINGLE), **beside}
    save_file(before, folder / SINGLE, metadata={"format": "pt"})
    opened = Checkpoint.open(folder)
    out = apply(opened, Plan.of(opened.inventory, [LayerPlan(experts=KEEP)] * 3), tmp_path / "out")
    after = load_file(out / SINGLE)
    for name, value in after.items():
        parts = name.split(".")
        parts[5:6] = [str(KEEP[int(parts[5])])] if "experts" in parts else parts[5:6]
        expected = before[".".join(parts)]
        expected = expected[list(KEEP)] if name.endswith("mlp.gate.weight") else expected
        assert value.dtype == expected.dtype and torch.equal(value.float(), expected.float()), name
    assert beside.keys() <= after.keys() and len(after) > 100
    stated = json.loads((out / "config.json").read_bytes())["quantization_config"]
    assert stated == SOURCES[kind][1]


def test_modelopts_own_file_counts_and_goes_into_the_config(tmp_path: Path) -> None:
    folder = source("modelopt", tmp_path / "source")
    config = json.loads((folder / "config.json").read_bytes())
    del config["quantization_config"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has shape"):
        Checkpoint.open(folder)
    own = {"quant_algo": "NVFP4", "kv_cache_quant_algo": "FP8", "group_size": 16, "exclude_modules": ["lm_head"]}
    (folder / "hf_quant_config.json").write_text(json.dumps({"quantization": own}))
    opened = Checkpoint.open(folder)
    out = apply(opened, Plan.of(opened.inventory, [LayerPlan(experts=KEEP)] * 3), tmp_path / "out")
    stated = json.loads((out / "config.json").read_bytes())["quantization_config"]
    cache = {"dynamic": False, "num_bits": 8, "type": "float"}
    assert stated == {**MODELOPT, "kv_cache_scheme": cache, "ignore": ["lm_head"]}
    assert not (out / "hf_quant_config.json").exists()


def fused(folder: Path, spoiled: str | None = None) -> tuple[Path, Tensors]:
    """Write experts as gpt-oss lays them out; ``spoiled`` is the end of the names of tensors to leave out."""
    tiny_checkpoint("qwen3_moe", folder, dtype=torch.bfloat16)
    held = {name: value for name, value in load_file(folder / SINGLE).items() if "experts" not in name}
    packed: Tensors = {}
    width = json.loads((folder / "config.json").read_bytes())["moe_intermediate_size"]
    for layer in range(3):
        for number, (name, rows, columns) in enumerate((("gate_up_proj", 2 * width, 64), ("down_proj", 64, width))):
            stored = drawn(mxfp4_fused(), 8 * rows, columns, seed=2 * layer + number)
            stem = f"model.layers.{layer}.mlp.experts.{name}"
            packed[f"{stem}_blocks"] = stored["blocks"].view(8, rows, columns // 32, 16)
            packed[f"{stem}_scales"] = stored["scales"].view(8, rows, columns // 32)
    left = {name: value for name, value in packed.items() if spoiled is None or not name.endswith(spoiled)}
    save_file({**held, **left}, folder / SINGLE, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_bytes())
    stated = {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": stated}))
    return folder, packed


def test_experts_in_one_tensor_are_read_but_not_taken_apart(tmp_path: Path) -> None:
    folder, packed = fused(tmp_path / "source")
    opened = Checkpoint.open(folder)
    for entry in opened.inventory.layers[1].tensors:
        if entry.expert is None:
            assert entry.stored is None
            continue
        stem = "model.layers.1.mlp.experts." + ("down_proj" if entry.role == "expert.down" else "gate_up_proj")
        whole = convert_moe_packed_tensors(packed[f"{stem}_blocks"], packed[f"{stem}_scales"], dtype=torch.float32)
        rows = entry.shape[0]
        start = rows if entry.role == "expert.up" else 0
        assert torch.equal(opened.read(entry), whole[entry.expert].T[start : start + rows])
    with pytest.raises(PlanError, match="read here, but not written"):
        apply(opened, Plan.of(opened.inventory, [LayerPlan(experts=KEEP)] * 3), tmp_path / "out")


@pytest.mark.parametrize("spoiled", ["_scales", "_blocks"])
def test_experts_in_one_tensor_need_their_scales(spoiled: str, tmp_path: Path) -> None:
    folder, _ = fused(tmp_path / "source", spoiled)
    with pytest.raises(CheckpointError, match=f"{spoiled} is not in the files"):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    ("kind", "more", "message"),
    [
        ("modelopt", {"quant_algo": "MIXED_PRECISION"}, "NVFP4 for all"),
        ("modelopt", {"group_size": 32}, "allowed: 16"),
        ("nvfp4", {"format": "mxfp4-pack-quantized"}, "in groups of 32"),
    ],
)
def test_other_settings_are_refused(kind: str, more: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = source(kind, tmp_path / "source")
    config = json.loads((folder / "config.json").read_bytes())
    config["quantization_config"] |= more
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.open(folder)
