"""Values that mean nothing: codes without scales, NaN, tokenizers that are not there or not the model's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import SINGLE, Checkpoint
from bench.checkpoint.tokenizer_files import open_tokenizer
from bench.pocket import pocket_path
from methods.framework.errors import CheckpointError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.tiny import tiny_checkpoint


def replaced(folder: Path, part: str, change: torch.Tensor | None = None, dtype: torch.dtype | None = None) -> str:
    """Replace the first tensor whose name holds ``part``; return its name."""
    tensors = load_file(folder / SINGLE)
    name = next(name for name in sorted(tensors) if part in name)
    tensors[name] = change if change is not None else tensors[name].to(dtype)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8, torch.int64, torch.bool])
def test_codes_without_their_scales_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    folder = tiny_checkpoint("olmoe", tmp_path / "model")
    name = replaced(folder, "experts.0.gate", dtype=dtype)
    with pytest.raises(CheckpointError, match=rf"{name} holds .* nothing without their scales"):
        Checkpoint.open(folder)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_weights_that_are_not_finite_are_refused_when_they_are_read(value: float, tmp_path: Path) -> None:
    folder = tiny_checkpoint("olmoe", tmp_path / "model")
    opened = Checkpoint.open(folder)
    entry = next(e for e in opened.inventory.tensors() if e.role == "expert.up")
    spoiled = opened.read(entry).clone()
    spoiled[0, 3] = value
    replaced(folder, entry.name, spoiled)
    checkpoint = Checkpoint.open(folder)
    with pytest.raises(CheckpointError, match=rf"1 of {spoiled.numel()} values of {entry.name} are NaN or infinite"):
        checkpoint.read(entry)
    with pytest.raises(CheckpointError, match="NaN or infinite"):
        checkpoint.read_into(entry, torch.empty(entry.shape, dtype=torch.bfloat16))
    assert torch.isfinite(checkpoint.read(entry, rows=(1, 2))).all(), "rows without it are read"
    with (tmp_path / "copied").open("wb") as file:
        checkpoint.copy_to(entry, file.fileno(), rows=(1, 2))
        with pytest.raises(
            CheckpointError, match=rf"1 of {spoiled.numel()} values of {entry.name} are NaN or infinite"
        ):
            checkpoint.copy_to(entry, file.fileno())
    nothing = Plan.identity(checkpoint.inventory)
    with pytest.raises(CheckpointError, match=f"values of {entry.name} are NaN or infinite"):
        apply(checkpoint, nothing, tmp_path / "out")
    assert not (tmp_path / "out").exists(), "nothing that looks finished"


def test_large_values_whose_sum_overflows_are_read(tmp_path: Path) -> None:
    folder = tiny_checkpoint("olmoe", tmp_path / "model", dtype=torch.float16)
    opened = Checkpoint.open(folder)
    entry = next(e for e in opened.inventory.tensors() if e.role == "expert.up")
    large = torch.full(entry.shape, 6e4, dtype=torch.float16)
    replaced(folder, entry.name, large)
    assert torch.equal(Checkpoint.open(folder).read(entry), large)


def test_a_single_shard_without_its_index_is_told_what_is_missing(tmp_path: Path) -> None:
    folder = tiny_checkpoint("olmoe", tmp_path / "model")
    (folder / SINGLE).rename(folder / "model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"rename the only one to model\.safetensors"):
        Checkpoint.open(folder)
    (folder / "model-00001-of-00001.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    with pytest.raises(CheckpointError, match=r"fetch model\.safetensors\.index\.json too"):
        Checkpoint.open(folder)


def copied_tokenizer(folder: Path) -> Path:
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        (folder / name).write_bytes((pocket_path("pocket-mixtral") / name).read_bytes())
    return folder


def test_a_tokenizer_without_words_is_refused(tmp_path: Path) -> None:
    folder = copied_tokenizer(tmp_path / "words")
    assert open_tokenizer(folder).get_vocab()
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"knows no words|no tokenizer that loads"):
        open_tokenizer(folder)
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "Qwen2Tokenizer"}))
    with pytest.raises(CheckpointError, match=r"knows no words|no tokenizer that loads"):
        open_tokenizer(folder)


def test_no_other_tokenizer_takes_the_place_of_one_with_code_of_its_own(tmp_path: Path) -> None:
    folder = copied_tokenizer(tmp_path / "code")
    stated = json.loads((folder / "tokenizer_config.json").read_text())
    stated["auto_map"] = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    (folder / "tokenizer_config.json").write_text(json.dumps(stated))
    with pytest.raises(CheckpointError, match=r"code of its own .*tokenization_own\.OwnTokenizer"):
        open_tokenizer(folder)


def test_layers_of_multi_token_prediction_are_left_out_and_it_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_checkpoint("deepseek_v3", tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    layers = config["num_hidden_layers"]
    (folder / "config.json").write_text(json.dumps({**config, "num_nextn_predict_layers": 3}))
    more = {f"model.layers.{layers + i}.eh_proj.weight": torch.ones(2, 2) for i in range(3)}
    save_file({**load_file(folder / SINGLE), **more}, folder / SINGLE, metadata={"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    assert checkpoint.left_out == tuple(sorted(more))
    apply(checkpoint, Plan.of(checkpoint.inventory, [LayerPlan()] * layers), tmp_path / "out")
    assert f"3 tensors of multi-token prediction (model.layers.{layers}" in caplog.text
    assert Checkpoint.open(tmp_path / "out").left_out == ()
