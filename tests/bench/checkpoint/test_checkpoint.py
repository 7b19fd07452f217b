"""Reading checkpoints: both layouts, every damage named, content digests that notice changes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from bench.applying.apply import apply
from bench.checkpoint import content
from bench.checkpoint.checkpoint import INDEX, SINGLE, Checkpoint
from bench.checkpoint.headers import read_header
from bench.models.load import load_model
from methods.framework.errors import CheckpointError, NotMoEError
from methods.framework.inventory import CONSTANT_ROLE
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.groupings import moments_of
from tests.support.masking import logits
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_model, tiny_tokens


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_checkpoint("mixtral", tmp_path / "mixtral")


def sharded(folder: Path) -> list[Path]:
    """Write a checkpoint of several shards."""
    tiny_model("mixtral").save_pretrained(folder, max_shard_size="200KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


def rewrite(folder: Path, change: dict[str, torch.Tensor | None]) -> None:
    """Replace, add or (None) remove tensors of a single-file checkpoint."""
    tensors = {**load_file(folder / SINGLE), **change}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / SINGLE, metadata={"format": "pt"})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_read_as_safetensors_reads_them(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(name, tmp_path, dtype=dtype))
    reference = load_file(tmp_path / SINGLE)
    for entry in checkpoint.inventory.tensors():
        expected = reference[entry.name]
        assert expected.dtype == checkpoint.read(entry).dtype
        assert torch.equal(checkpoint.read(entry), expected)
        assert b"".join(map(bytes, checkpoint.bytes_of(entry))) == expected.view(torch.uint8).numpy().tobytes()
    assert {entry.dtype for entry in checkpoint.inventory.tensors()} >= {"F32" if dtype == torch.float32 else "BF16"}


def test_rows_conversion_and_strided_targets(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    router = next(checkpoint.inventory.layers[1].with_role("router.weight"))
    expected = load_file(folder / SINGLE)[router.name]
    rows = (0, 1, 4, 7)
    assert torch.equal(checkpoint.read(router, rows), expected[list(rows)])
    raw = expected[list(rows)].numpy().tobytes()
    assert b"".join(map(bytes, checkpoint.bytes_of(router, rows))) == raw
    converted = torch.empty(4, 64, dtype=torch.bfloat16)
    checkpoint.read_into(router, converted, rows)
    assert torch.equal(converted, expected[list(rows)].bfloat16())
    strided = torch.zeros(64, 16).T[::2]
    checkpoint.read_into(router, strided)
    assert torch.equal(strided, expected)
    with pytest.raises(CheckpointError, match="target has"):
        checkpoint.read_into(router, torch.empty(3, 64))
    checkpoint.close()
    assert torch.equal(checkpoint.read(router), expected)


def test_conversion_of_more_than_one_chunk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.checkpoint.tensor_files.CHUNK", 1000)
    checkpoint = Checkpoint.open(folder)
    entry = next(checkpoint.inventory.layers[0].with_role("expert.gate"))
    half = torch.empty(entry.shape, dtype=torch.float16)
    checkpoint.read_into(entry, half)
    assert torch.equal(half, load_file(folder / SINGLE)[entry.name].half())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_fused_layout_reads_like_the_classic_one(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "classic")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    stored = load_file(tmp_path / "fused" / SINGLE)
    assert any(key.endswith("experts.gate_up_proj") for key in stored)
    classic, fused = Checkpoint.open(tmp_path / "classic"), Checkpoint.open(tmp_path / "fused")
    assert classic.inventory == fused.inventory
    assert classic.content != fused.content
    for entry in classic.inventory.tensors():
        assert torch.equal(classic.read(entry), fused.read(entry))
    key = next(key for key in stored if key.endswith("experts.down_proj"))
    rewrite(tmp_path / "fused", {key: stored[key][:5].clone()})
    with pytest.raises(CheckpointError, match=key):
        Checkpoint.open(tmp_path / "fused")


def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    sharded(tmp_path / "many")
    tiny_checkpoint("mixtral", tmp_path / "one")
    many, one = Checkpoint.open(tmp_path / "many"), Checkpoint.open(tmp_path / "one")
    assert many.inventory == one.inventory
    for entry in one.inventory.tensors():
        assert torch.equal(many.read(entry), one.read(entry))


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    shards = sharded(tmp_path)
    shards[1].unlink()
    with pytest.raises(CheckpointError, match=f"lacks 1 of .* shards: {shards[1].name}"):
        Checkpoint.open(tmp_path)


def test_an_index_that_promises_too_much_is_named(tmp_path: Path) -> None:
    shards = sharded(tmp_path)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["model.norm.weight"] = shards[0].name
    index["weight_map"]["model.embed_tokens.weight"] = shards[-1].name
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"that model\.safetensors\.index\.json says it holds"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("size", [-1, -5000, 4, 100])
def test_a_truncated_file_is_named(folder: Path, size: int) -> None:
    path = folder / SINGLE
    os.truncate(path, size if size > 0 else path.stat().st_size + size)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated"):
        Checkpoint.open(folder)


def test_a_file_that_is_too_long_or_garbage_is_named(folder: Path) -> None:
    with (folder / SINGLE).open("ab") as file:
        file.write(b"more")
    with pytest.raises(CheckpointError, match="longer than it should be"):
        Checkpoint.open(folder)
    (folder / SINGLE).write_bytes((20).to_bytes(8, "little") + b"x" * 40)
    with pytest.raises(CheckpointError, match="not valid JSON"):
        Checkpoint.open(folder)


def test_a_file_cut_after_opening_is_noticed(folder: Path) -> None:
    checkpoint = Checkpoint.open(folder)
    os.truncate(folder / SINGLE, 5000)
    with pytest.raises(CheckpointError, match="cut while being read"):
        for entry in checkpoint.inventory.tensors():
            checkpoint.read(entry)


def test_missing_extra_and_misshapen_tensors_are_named(folder: Path) -> None:
    whole = load_file(folder / SINGLE)
    rewrite(folder, {"model.layers.1.block_sparse_moe.experts.3.w2.weight": None})
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*layers\.1.*experts\.3\.w2"):
        Checkpoint.open(folder)
    save_file(whole, folder / SINGLE)
    rewrite(folder, {"model.layers.1.adapter.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match=r"holds 1 tensors .*adapter\.weight"):
        Checkpoint.open(folder)
    save_file(whole, folder / SINGLE)
    rewrite(folder, {"model.norm.weight": torch.zeros(63)})
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight has shape \[63\].*\[64\]"):
        Checkpoint.open(folder)
    save_file(whole, folder / SINGLE)
    rewrite(folder, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)})
    assert len(list(Checkpoint.open(folder).inventory.tensors())) == len(whole)


def test_multi_token_prediction_layers_are_left_out(tmp_path: Path) -> None:
    tiny_checkpoint("deepseek_v3", tmp_path)
    rewrite(tmp_path, {"model.layers.3.eh_proj.weight": torch.zeros(2)})
    Checkpoint.open(tmp_path)
    rewrite(tmp_path, {"model.layers.2.eh_proj.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="eh_proj"):
        Checkpoint.open(tmp_path)


def test_folders_that_are_no_moe_checkpoints_say_why(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        Checkpoint.open(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="not a JSON object"):
        Checkpoint.open(tmp_path / "empty")
    (tmp_path / "empty" / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(NotMoEError, match="llama"):
        Checkpoint.open(tmp_path / "empty")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "aqlm"}}))
    with pytest.raises(CheckpointError, match="quantised"):
        Checkpoint.open(folder)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin"):
        Checkpoint.open(folder)


def test_content_notices_every_change(folder: Path) -> None:
    first = Checkpoint.open(folder).content
    assert Checkpoint.open(folder).content == first
    path = folder / SINGLE
    times = (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    os.utime(path, ns=times)  # same size, same modification time
    assert Checkpoint.open(folder).content != first
    raw[-1] ^= 1
    path.write_bytes(raw)
    assert Checkpoint.open(folder).content == first
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert Checkpoint.open(folder).content != first


def test_digests_are_remembered_only_for_files_left_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    hashed: list[Path] = []
    real = content._hash
    monkeypatch.setattr(content, "_hash", lambda path: (hashed.append(path), real(path))[1])
    path = folder / SINGLE
    digest = content.file_digest(path)
    assert content.file_digest(path) == digest and len(hashed) == 2
    now = time.time_ns()
    monkeypatch.setattr(content.time, "time_ns", lambda: now + 10 * content._QUIET_NS)
    assert content.file_digest(path) == digest and len(hashed) == 3
    assert content.file_digest(path) == digest and len(hashed) == 3
    os.utime(path)
    assert content.file_digest(path) == digest and len(hashed) == 4


def test_a_fused_checkpoint_gives_the_same_logits(tmp_path: Path) -> None:
    model = tiny_model("qwen3_moe")
    model.save_pretrained(tmp_path, save_original_format=False)
    tokens = tiny_tokens()
    assert torch.equal(logits(load_model(tmp_path), tokens), logits(model, tokens))


def test_tokenizer_files(folder: Path) -> None:
    for name in ("tokenizer.json", "tokenizer_config.json", "README.md"):
        (folder / name).write_text("{}")
    assert [path.name for path in Checkpoint.open(folder).tokenizer_files] == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_constants_that_are_missing_or_of_another_size_are_named(folder: Path, tmp_path: Path) -> None:
    source = Checkpoint.open(folder)
    plan = Plan.of(source.inventory, [LayerPlan(experts=(0, 1, 2), constants=(3, 4), router="map")] * 3)
    out = apply(source, plan, tmp_path / "out", moments=moments_of(source.inventory))
    layer = Checkpoint.open(out).inventory.layers[1]
    entry = next(layer.with_role(CONSTANT_ROLE))
    assert entry.name == "model.layers.1.block_sparse_moe.constant_experts"
    stored = load_file(out / SINGLE)[entry.name]
    assert torch.equal(Checkpoint.open(out).read(entry), stored) and layer.expert_map == (0, 1, 2, 3, 4)
    for damage, words in ((None, f"lacks 1 tensors .*{entry.name}"), (stored[:1].clone(), f"{entry.name} has shape")):
        rewrite(out, {entry.name: damage})
        with pytest.raises(CheckpointError, match=words):
            Checkpoint.open(out)


def test_content_covers_what_lies_beside_the_weights(folder: Path) -> None:
    """A tokenizer or the settings of generation change answers as weights do; a licence that comes along does not matter."""
    seen = {Checkpoint.open(folder).content}
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja", "modeling_own.py"):
        (folder / name).write_text("{}")
        first = Checkpoint.open(folder).content
        (folder / name).write_text('{"a": 1}')
        seen |= {first, Checkpoint.open(folder).content}
    assert len(seen) == 9
    last = Checkpoint.open(folder).content
    for name in ("LICENSE", "picture.png", ".hidden.json"):
        (folder / name).write_text("x")
    assert Checkpoint.open(folder).content == last


def test_a_folder_with_two_models_is_refused(folder: Path) -> None:
    save_file({"x": torch.zeros(1)}, folder / "model-00001-of-00001.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"x": "model-00001-of-00001.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"holds two models, .* remove one"):
        Checkpoint.open(folder)


def _sharded(folder: Path, weight_map: dict[str, Any]) -> None:
    (folder / SINGLE).rename(folder / "a.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))


@pytest.mark.parametrize("name", ["../a.safetensors", "/etc/passwd", "..", "", 7, None])
def test_an_index_names_files_of_its_own_folder_only(folder: Path, name: Any) -> None:
    _sharded(folder, {"x": name})
    with pytest.raises(CheckpointError, match="files that are not in its own folder"):
        Checkpoint.open(folder)


def test_a_tensor_in_two_shards_is_refused(folder: Path) -> None:
    names = list(read_header(folder / SINGLE))
    _sharded(folder, dict.fromkeys(names, "a.safetensors") | {"more": "b.safetensors"})
    save_file({"more": torch.zeros(1), names[0]: torch.zeros(1)}, folder / "b.safetensors")
    with pytest.raises(CheckpointError, match=r"stands in two shards, a.safetensors and b.safetensors"):
        Checkpoint.open(folder)


def _file(path: Path, header: Any, size: int = 8) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(size))
    return path


_TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": _TENSOR, "b": {**_TENSOR, "data_offsets": [2, 6]}}, "tensor b overlaps the tensor before it"),
        ({"a": _TENSOR, "b": {**_TENSOR, "data_offsets": [0, 4]}}, "overlaps the tensor before it"),
        ({"b": {**_TENSOR, "data_offsets": [4, 8]}}, "tensor b leaves a gap before it"),
        ({"a": {**_TENSOR, "data_offsets": [0.0, 4.0]}}, "malformed safetensors header: tensor a"),
        ({"a": {**_TENSOR, "data_offsets": [0, 4, 8]}}, "malformed safetensors header: tensor a"),
        ({"a": {**_TENSOR, "data_offsets": [-4, 0]}}, "malformed safetensors header: tensor a"),
        ({"a": {**_TENSOR, "shape": [True]}}, "malformed safetensors header: tensor a"),
        ({"a": {**_TENSOR, "shape": "1"}}, "malformed safetensors header: tensor a"),
        ({"a": {**_TENSOR, "dtype": None}}, "malformed safetensors header: tensor a"),
        ({"a": [1, 2]}, "malformed safetensors header: tensor a"),
        ([], "holds a list, not a JSON object"),
        (b"[" * 100_000, "nested more than"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
    ],
)
def test_a_header_that_the_format_does_not_allow_is_named(tmp_path: Path, header: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_header(_file(tmp_path / "x.safetensors", header))


def test_a_pipe_in_place_of_a_shard_is_no_wait(folder: Path) -> None:
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)
    with pytest.raises(CheckpointError, match="not a file but a folder, a pipe or a device"):
        Checkpoint.open(folder)
