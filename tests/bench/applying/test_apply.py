"""What apply writes is what the plan and its cost say, bit for bit, complete or not at all."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bench.applying import apply as apply_module
from bench.applying.apply import apply
from bench.checkpoint.checkpoint import INDEX, SINGLE, Checkpoint
from bench.checkpoint.content import PLAN_FILE
from bench.families.family import family_of
from methods.framework.cost import cost
from methods.framework.errors import CheckpointError, PlanError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.transfer import result, transfers
from tests.support.places import ROOT
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_model

KEEP = (0, 2, 5, 7)


def plans(inventory: Inventory) -> dict[str, Plan]:
    """Plans of every kind for a 3-layer model of 8 experts whose last two layers are MoE."""
    some = LayerPlan(experts=KEEP)
    even = [some if layer.mlp == "moe" else LayerPlan() for layer in inventory.layers]
    layers = {
        "identity": [LayerPlan()] * 3,
        "equal": even,
        "different": [LayerPlan(), some, LayerPlan(experts=(0, 1, 2, 4, 5, 6), top_k=1)],
        "sublayer": [LayerPlan(), LayerPlan(drop="moe"), some],
        "block": [LayerPlan(drop="block"), LayerPlan(), some],
        "all": [LayerPlan(), LayerPlan(drop="block"), LayerPlan(drop="moe")],
    }
    return {name: Plan.of(inventory, plan) for name, plan in layers.items()}


def written_tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


@pytest.fixture
def mixtral(tmp_path: Path) -> Checkpoint:
    return Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "mixtral"))


@pytest.mark.parametrize("kind", ["identity", "equal", "different", "sublayer", "block", "all"])
@pytest.mark.parametrize("name", FAMILIES)
def test_tensors_are_the_sources_bits_and_cost_is_exact(name: str, kind: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(name, tmp_path / "source", dtype=torch.bfloat16))
    plan = plans(checkpoint.inventory)[kind]
    out = apply(checkpoint, plan, tmp_path / "out")
    source, written = load_file(tmp_path / "source" / SINGLE), written_tensors(out)
    moves = list(transfers(plan, checkpoint.inventory))
    assert set(written) == {move.target.name for move in moves}
    for move in moves:
        expected = source[move.source.name]
        expected = expected if move.rows is None else expected[list(move.rows)]
        assert written[move.target.name].dtype == expected.dtype
        assert torch.equal(written[move.target.name], expected)
    price = cost(plan, checkpoint.inventory)
    assert price.parameters == sum(tensor.numel() for tensor in written.values())
    assert price.bytes == sum(tensor.nbytes for tensor in written.values())
    assert Checkpoint.open(out).inventory == result(plan, checkpoint.inventory)
    if kind == "identity":
        assert written.keys() == source.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_fused_source_is_written_in_classic_names(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "classic")
    model.save_pretrained(tmp_path / "fused", save_original_format=False)
    written = []
    for layout in ("classic", "fused"):
        checkpoint = Checkpoint.open(tmp_path / layout)
        apply(checkpoint, plans(checkpoint.inventory)["different"], tmp_path / f"{layout}-out")
        written.append(written_tensors(tmp_path / f"{layout}-out"))
    assert written[0].keys() == written[1].keys()
    assert all(torch.equal(written[0][key], written[1][key]) for key in written[0])


def test_a_family_that_transformers_lacks_is_written_too(tmp_path: Path) -> None:
    config = {"model_type": "deepseek", "n_routed_experts": 4, "num_experts_per_tok": 2, "hidden_size": 8}
    config |= {"vocab_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "moe_intermediate_size": 4}
    config |= {"n_shared_experts": 1, "first_k_dense_replace": 1, "intermediate_size": 12, "dtype": "float32"}
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(config))
    entries = list(family_of(config).inventory(config).tensors())
    save_file({entry.name: torch.randn(entry.shape) for entry in entries}, source / SINGLE)
    checkpoint = Checkpoint.open(source)
    plan = Plan.of(checkpoint.inventory, [LayerPlan(), LayerPlan(experts=(1, 3)), LayerPlan(drop="moe")])
    out = apply(checkpoint, plan, tmp_path / "out")
    assert Checkpoint.open(out).inventory == result(plan, checkpoint.inventory)


def test_shards_index_and_metadata(mixtral: Checkpoint, tmp_path: Path) -> None:
    plan = Plan.identity(mixtral.inventory)
    one = apply(mixtral, plan, tmp_path / "one")
    many = apply(mixtral, plan, tmp_path / "many", shard_bytes=100_000)
    files = sorted(many.glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors" and len(files) > 3
    index = json.loads((many / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(entry.nbytes for entry in mixtral.inventory.tensors())
    for path in files:
        with safe_open(path, "pt") as file:
            names = list(file.keys())
            assert file.metadata() == {"format": "pt"}
        assert all(index["weight_map"][name] == path.name for name in names)
        assert sum(tensor.nbytes for tensor in load_file(path).values()) <= 100_000
    a, b = written_tensors(one), written_tensors(many)
    assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert not (one / INDEX).exists()


def test_mixed_dtypes_stay_aligned(tmp_path: Path) -> None:
    folder = tiny_checkpoint("deepseek_v3", tmp_path / "source", dtype=torch.bfloat16, vocab_size=161)
    tensors = {k: v.float() if k.endswith("bias") else v for k, v in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    checkpoint = Checkpoint.open(folder)
    assert {entry.dtype for entry in checkpoint.inventory.tensors()} == {"BF16", "F32"}
    out = apply(checkpoint, plans(checkpoint.inventory)["equal"], tmp_path / "out")
    with (out / SINGLE).open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    header.pop("__metadata__")
    assert all(entry["data_offsets"][0] % (4 if entry["dtype"] == "F32" else 2) == 0 for entry in header.values())


def test_copies_through_a_buffer_where_the_kernel_cannot(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans(mixtral.inventory)["equal"]
    apply(mixtral, plan, tmp_path / "kernel")

    def refuse(*args: int) -> int:
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    apply(mixtral, plan, tmp_path / "buffer")
    assert (tmp_path / "kernel" / SINGLE).read_bytes() == (tmp_path / "buffer" / SINGLE).read_bytes()


def test_plan_file_and_small_files(mixtral: Checkpoint, tmp_path: Path) -> None:
    (mixtral.path / "tokenizer.json").write_text('{"a": 1}')
    (mixtral.path / "old.bin").write_bytes(b"x")
    plans_of = plans(mixtral.inventory)
    out = apply(mixtral, plans_of["equal"], tmp_path / "out", provenance={"method": "by hand"})
    document = json.loads((out / PLAN_FILE).read_text())
    assert Plan.loads(json.dumps(document)) == plans_of["equal"]
    assert document["provenance"]["method"] == "by hand"
    assert document["provenance"]["source"] == {"name": "mixtral", "revision": None, "content": mixtral.content}
    assert (out / "tokenizer.json").read_text() == '{"a": 1}'
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "plan.json",
        "tokenizer.json",
    ]
    again = Checkpoint.open(out)
    second = apply(again, Plan.of(again.inventory, [LayerPlan(experts=(1, 2))] * 3), tmp_path / "second")
    assert json.loads((second / PLAN_FILE).read_text())["provenance"]["before"] == document


def test_progress_counts_every_byte(mixtral: Checkpoint, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    plan = plans(mixtral.inventory)["different"]
    apply(mixtral, plan, tmp_path / "out", progress=lambda done, total: seen.append((done, total)))
    total = cost(plan, mixtral.inventory).bytes
    assert seen[-1] == (total, total) and seen == sorted(seen)


def test_the_same_work_is_not_done_twice_and_other_work_is_not_overwritten(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    named = plans(mixtral.inventory)
    (tmp_path / "out").mkdir()
    out = apply(mixtral, named["equal"], tmp_path / "out")
    before = (out / SINGLE).stat().st_mtime_ns
    assert apply(mixtral, named["equal"], out) == out
    assert (out / SINGLE).stat().st_mtime_ns == before
    with pytest.raises(CheckpointError, match="exists and holds something else"):
        apply(mixtral, named["identity"], out)
    other = Checkpoint.open(tiny_checkpoint("mixtral", tmp_path / "other", seed=1))
    with pytest.raises(CheckpointError, match="exists and holds something else"):
        apply(other, named["equal"], out)
    os.truncate(out / SINGLE, 3000)
    with pytest.raises(CheckpointError, match="truncated"):
        apply(mixtral, named["equal"], out)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "note").write_text("mine")
    with pytest.raises(CheckpointError, match="exists and holds something else"):
        apply(mixtral, named["equal"], tmp_path / "full")


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_plan_that_does_not_fit_writes_nothing(mixtral: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="expert 9"):
        apply(mixtral, Plan(family="mixtral", layers=(LayerPlan(experts=(9,)),) * 3), tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_a_full_disk_gives_one_error_and_leaves_nothing(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans(mixtral.inventory)["equal"]
    copy, calls = os.copy_file_range, []

    def fill(*args: Any) -> int:
        calls.append(args)
        if len(calls) > 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return copy(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "copy_file_range", fill)
        with pytest.raises(CheckpointError, match=r"No space left on device.*free space"):
            apply(mixtral, plan, tmp_path / "out")
    assert len(calls) == 21
    with monkeypatch.context() as patch:
        patch.setattr(apply_module.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(CheckpointError, match="No space left on device"):
            apply(mixtral, plan, tmp_path / "out")
    assert not (tmp_path / "out").exists() and hidden(tmp_path) == []
    apply(mixtral, plan, tmp_path / "out")


def test_a_result_that_does_not_read_back_is_not_published(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = apply_module._write_json

    def wrong(path: Path, value: dict[str, Any]) -> None:
        real(path, {**value, "num_local_experts": 3} if path.name == "config.json" else value)

    monkeypatch.setattr(apply_module, "_write_json", wrong)
    with pytest.raises(CheckpointError, match="shape"):
        apply(mixtral, plans(mixtral.inventory)["equal"], tmp_path / "out")
    assert not (tmp_path / "out").exists() and hidden(tmp_path) == []


_KILLED = """
import sys, time
from pathlib import Path
from bench.applying import apply as module
from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.plan import Plan
from methods.framework.layer_plan import LayerPlan

def stop(*_):
    print("here", flush=True)
    time.sleep(60)

source, out, stage = sys.argv[1:]
if stage == "check":
    module.seal = stop
checkpoint = Checkpoint.open(source)
plan = Plan.of(checkpoint.inventory, [LayerPlan(experts=(0, 1))] * 3)
progress = (lambda done, total: stop() if done > total / 2 else None) if stage == "copy" else None
module.apply(checkpoint, plan, Path(out), progress=progress)
"""


@pytest.mark.parametrize("stage", ["copy", "check"])
def test_a_killed_apply_leaves_nothing_that_looks_finished(mixtral: Checkpoint, tmp_path: Path, stage: str) -> None:
    folder = tmp_path / "results"
    command = [sys.executable, "-c", _KILLED, str(mixtral.path), str(folder / "out"), stage]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        plan = Plan.of(mixtral.inventory, [LayerPlan(experts=(0, 1))] * 3)
        apply(mixtral, plan, folder / "meanwhile")
        assert len(hidden(folder)) == 1
        process.send_signal(signal.SIGKILL)
    assert [p.name for p in folder.iterdir() if not p.name.startswith(".")] == ["meanwhile"]
    with pytest.raises(CheckpointError):
        Checkpoint.open(folder / "out")
    out = apply(mixtral, plan, folder / "out")
    assert Checkpoint.open(out).inventory == result(plan, mixtral.inventory)
    assert hidden(folder) == []


def test_another_process_at_work_on_the_same_folder_is_left_alone(
    mixtral: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plans(mixtral.inventory)["equal"]
    first: list[Path] = []
    real = apply_module.seal

    def race(folder: Path, expected: Inventory) -> None:
        if not first:
            first.append(folder)
            apply(mixtral, plan, tmp_path / "out")  # a second writer starts and finishes meanwhile
            assert folder.exists()
        real(folder, expected)

    monkeypatch.setattr(apply_module, "seal", race)
    out = apply(mixtral, plan, tmp_path / "out")
    assert Checkpoint.open(out).inventory == result(plan, mixtral.inventory)
    assert hidden(tmp_path) == []


def test_what_was_written_is_compared_before_it_is_used_again(tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint("olmoe"))
    plan = Plan.of(source.inventory, [LayerPlan(experts=(0, 2, 3, 5, 6, 7))] * len(source.inventory.layers))
    out = apply(source, plan, tmp_path / "out")
    assert json.loads((out / PLAN_FILE).read_text())["provenance"]["written"] == Checkpoint.open(out).content
    assert apply(source, plan, out) == out
    weights = out / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(data)
    for use in (lambda: Checkpoint.open(out).content, lambda: apply(source, plan, out)):
        with pytest.raises(CheckpointError, match="does not hold what was written to it"):
            use()
    data[-3] ^= 1
    weights.write_bytes(data)
    (out / "generation_config.json").write_text('{"do_sample": true}')
    with pytest.raises(CheckpointError, match=r"remove `written` from its plan.json"):
        _ = Checkpoint.open(out).content


def test_a_source_with_a_damaged_plan_file_is_one_clear_error(tmp_path: Path) -> None:
    source = Checkpoint.open(tiny_checkpoint("olmoe", tmp_path / "source"))
    (source.path / PLAN_FILE).write_text("{")
    with pytest.raises(CheckpointError, match=r"plan\.json is not valid JSON.*write the checkpoint again"):
        apply(source, Plan.identity(source.inventory), tmp_path / "out")
    assert not (tmp_path / "out").exists()
