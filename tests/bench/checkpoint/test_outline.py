"""What config.json and an index alone tell about a model: the same as its weights would, or the field that is at fault."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.checkpoint.checkpoint import INDEX, Checkpoint
from bench.checkpoint.outline import has_weights, outline
from bench.models.tiny import RUNNABLE
from methods.framework.cost import cost_of
from methods.framework.errors import CheckpointError, NotMoEError
from methods.framework.inventory import PASSED_ROLE
from tests.support.tiny import tiny_checkpoint

FP8 = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Return a folder that holds a config and nothing else."""
    shutil.copy(tiny_checkpoint("qwen3_moe") / "config.json", tmp_path)
    return tmp_path


def state(folder: Path, **changes: Any) -> None:
    document = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**document, **changes}))


def index(folder: Path, names: list[str]) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))


def names_of(family: str) -> list[str]:
    return [entry.name for entry in Checkpoint.open(tiny_checkpoint(family)).inventory.tensors()]


@pytest.mark.parametrize("family", RUNNABLE)
def test_a_config_tells_what_the_weights_would(family: str, tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint(family))
    shutil.copy(source.path / "config.json", tmp_path)
    found = outline(tmp_path)
    assert not has_weights(tmp_path) and has_weights(source.path)
    assert (found.family.name, found.stored, found.compared) == (family, None, None)
    whole = source.inventory
    own = replace(whole, outer=tuple(entry for entry in whole.outer if entry.role != PASSED_ROLE))
    assert cost_of(found.inventory) == cost_of(own)


def test_an_index_is_compared_both_ways(bare: Path) -> None:
    names = names_of("qwen3_moe")
    index(bare, names)
    assert outline(bare).compared == len(names)
    fused = [name for name in names if ".experts." not in name]
    layers = [f"model.layers.{i}.mlp.experts.{m}" for i in range(3) for m in ("gate_up_proj", "down_proj")]
    index(bare, fused + layers)
    assert outline(bare).compared == len(fused) + 6
    index(bare, names[:-1])
    with pytest.raises(CheckpointError, match=rf"lacks 1 tensors .*{names[-1]}"):
        outline(bare)
    index(bare, [*names, "model.visual.patch_embed.weight"])
    with pytest.raises(CheckpointError, match=r"names 1 tensors .*model\.visual\.patch_embed"):
        outline(bare)


def test_a_quantised_index_has_scales_beside_its_weights(bare: Path) -> None:
    names = names_of("qwen3_moe")
    expert = "model.layers.0.mlp.experts.0.up_proj.weight"
    state(bare, quantization_config=FP8)
    index(bare, [*names, f"{expert}_scale_inv"])
    found = outline(bare)
    assert found.stored == "fp8" and found.compared == len(names) + 1
    packed = [name for name in names if name != expert]
    index(bare, [*packed, f"{expert}_packed", f"{expert}_scale", f"{expert}_shape"])
    assert outline(bare).compared == len(names) + 2
    index(bare, [*names, "model.layers.0.mlp.other.weight_scale_inv"])
    with pytest.raises(CheckpointError, match=r"mlp\.other"):
        outline(bare)
    (bare / "config.json").write_text((tiny_checkpoint("qwen3_moe") / "config.json").read_text())
    (bare / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    index(bare, names)
    assert outline(bare).stored == "modelopt NVFP4"


def test_what_makes_no_sense_is_refused_with_the_field(bare: Path) -> None:
    for change, kind, words in (
        ({"model_type": "newmoe"}, NotMoEError, "model_type 'newmoe'"),
        ({"num_hidden_layers": -1}, CheckpointError, "num_hidden_layers as -1"),
        ({"quantization_config": "fp8"}, CheckpointError, "quantization_config"),
    ):
        shutil.copy(tiny_checkpoint("qwen3_moe") / "config.json", bare)
        state(bare, **change)
        with pytest.raises(kind, match=words):
            outline(bare)
