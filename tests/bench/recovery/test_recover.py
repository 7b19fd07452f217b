"""Recovery trains what its kind says and nothing else, keeps zeros and inventory, and refuses with a reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from bench.applying.apply import PLAN_FILE, apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.commands.recover_command import recover_from_command_line
from bench.models.load import load_model
from bench.recovery.loop import rate
from bench.recovery.objectives import next_token_loss
from bench.recovery.placed import held
from bench.recovery.recover import recover
from bench.recovery.text import Windows, steps_of
from bench.settings.recovery import RecoverySettings
from bench.text.corpus import Corpus
from methods.framework.errors import CheckpointError, ConfigError, RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.recoveries import CASES, PLANS, changed, compressed, settings, write_text
from tests.support.tiny import FAMILIES, tiny_checkpoint


@pytest.fixture
def text(tmp_path: Path) -> str:
    return write_text(tmp_path / "ids.npy")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def allowed(kind: str, experts: bool | None, inventory: Inventory) -> set[str]:
    """Return the roles that a kind may change, straight from what it promises."""
    roles = {entry.role for entry in inventory.tensors()} - {"router.correction"}
    if kind == "router_kd":
        return {"router.weight"}
    if kind == "lora":
        matrices = {e.role for e in inventory.tensors() if e.role.startswith("attention.") and len(e.shape) == 2}
        return matrices | ({"expert.gate", "expert.up", "expert.down"} if experts else set())
    return roles if experts is not False else {role for role in roles if not role.startswith("expert.")}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize(("kind", "experts"), CASES)
def test_only_what_the_kind_says_changes_and_the_loss_falls(
    kind: str, experts: bool | None, plan: str, text: str, tmp_path: Path
) -> None:
    source, student = compressed("mixtral", plan)
    chosen = settings(kind, text, experts=experts)
    seen: list[tuple[int, int, float]] = []
    done = recover(
        student.path, chosen, teacher=source.path, store_folder=tmp_path / "store", progress=lambda *s: seen.append(s)
    )
    result = Checkpoint.open(done.path)
    assert result.inventory == student.inventory
    assert {entry.role for entry in changed(student, result)} == allowed(kind, experts, student.inventory)
    assert [s[:2] for s in seen] == [(i, 6) for i in range(1, 7)]
    assert done.losses == (round(seen[0][2], 6), round(seen[-1][2], 6))
    assert done.losses[1] < 0.99 * done.losses[0], (
        "it falls by 2 to 7 percent, also where all weights differ by a thousandth"
    )
    assert (done.steps, done.tokens) == (6, 6 * 8 * 16)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "deepseek_v3"])
def test_the_model_after_training_is_the_model_that_was_written(family: str, text: str, tmp_path: Path) -> None:
    """The last loss, measured again on what was written, is below the first: weights went where they belong."""
    _, student = compressed(family, "mapped")
    if family == "qwen2_moe":
        chosen = settings("full", text, steps=15, rate=3e-3)
    else:
        chosen = settings("lora", text, steps=15, experts=True, rate=5e-2)
    done = recover(student.path, chosen, store_folder=tmp_path / "store")
    ids = torch.tensor(np.load(text))
    with torch.no_grad():
        before, after = (
            float(next_token_loss(load_model(path)(input_ids=ids, use_cache=False).logits, ids))
            for path in (student.path, done.path)
        )
    assert done.losses[1] < done.losses[0] - 0.1
    assert abs(before - done.losses[0]) < 1e-5
    assert after < done.losses[1] + 0.02


@pytest.mark.parametrize(("kind", "experts"), [("full", None), ("lora", True), ("expert_kd", None)])
def test_zeros_of_sparse_experts_stay_and_the_others_move(
    kind: str, experts: bool | None, text: str, tmp_path: Path
) -> None:
    source, student = compressed("mixtral", "sparse")
    done = recover(
        student.path, settings(kind, text, experts=experts), teacher=source.path, store_folder=tmp_path / "store"
    )
    result = Checkpoint.open(done.path)
    for entry in student.inventory.layers[0].with_role("expert.gate", "expert.up", "expert.down"):
        before, after = student.read(entry), result.read(entry)
        assert torch.equal(before == 0, after == 0) and (before == 0).float().mean() == 0.5
        assert (before != after).float().mean() > 0.45


def test_zeros_stay_also_where_an_earlier_plan_made_them(text: str, tmp_path: Path) -> None:
    _, sparse = compressed("mixtral", "sparse")
    plan = Plan.of(sparse.inventory, [LayerPlan(experts=(1, 2)), LayerPlan(), LayerPlan()])
    student = Checkpoint.open(apply(sparse, plan, tmp_path / "further"))
    result = Checkpoint.open(recover(student.path, settings("full", text), store_folder=tmp_path / "store").path)
    for entry in student.inventory.layers[0].with_role("expert.down"):
        assert torch.equal(student.read(entry) == 0, result.read(entry) == 0)


def test_a_dense_expert_with_a_zero_is_trained_whole(text: str, tmp_path: Path) -> None:
    """Only where a plan says so do zeros stay."""
    folder = tiny_checkpoint("mixtral", tmp_path / "source")
    tensors_of = load_file(folder / "model.safetensors")
    name = next(name for name in tensors_of if name.endswith("experts.0.w2.weight"))
    tensors_of[name][0] = 0.0
    save_file(tensors_of, folder / "model.safetensors", metadata={"format": "pt"})
    done = recover(folder, settings("full", text), store_folder=tmp_path / "store")
    assert (tensors(done.path)[name][0] != 0).all()


def test_updates_have_the_rank_and_scale_that_was_asked_for(text: str, tmp_path: Path) -> None:
    _, student = compressed("mixtral", "mapped")
    done = recover(student.path, settings("lora", text, experts=True, rank=2), store_folder=tmp_path / "store")
    result = Checkpoint.open(done.path)
    for entry in student.inventory.layers[0].tensors:
        if entry.role in ("attention.q", "expert.down"):
            singular = torch.linalg.svdvals((result.read(entry) - student.read(entry)).double())
            assert singular[1] > 1e-5 and singular[2] < 1e-6
    sizes = [sum(entry.shape) * 2 for entry in student.inventory.tensors() if entry.role.startswith("attention.")]
    for layer in student.inventory.layers:
        for entry in layer.with_role("expert.down"):
            sizes.append(2 * (sum(entry.shape) + 2 * 32 + 64))  # gate and up are adapted together
    assert done.trained_parameters == sum(sizes)
    first = [
        recover(student.path, settings("lora", text, alpha=a, steps=1, warmup=0.0), store_folder=tmp_path / "store")
        for a in (4.0, 8.0)
    ]
    entry = next(student.inventory.layers[0].with_role("attention.q"))
    small, large = (Checkpoint.open(one.path).read(entry) - student.read(entry) for one in first)
    # Adam's first step has the same size whatever the gradient's is, up to its epsilon.
    assert (large - 2 * small).norm() < 1e-2 * large.norm() and small.abs().max() > 1e-4


def test_the_file_keeps_its_dtype(text: str, tmp_path: Path) -> None:
    source, student = compressed("mixtral", "sparse", dtype=torch.bfloat16)
    done = recover(student.path, settings("router_kd", text), teacher=source.path, store_folder=tmp_path)
    result = Checkpoint.open(done.path)
    assert result.inventory == student.inventory
    assert {entry.dtype for entry in result.inventory.tensors()} == {"BF16"}
    assert {entry.role for entry in changed(student, result)} == {"router.weight"}


def test_every_tensor_is_found_in_the_parameters() -> None:
    for family in FAMILIES:
        _, student = compressed(family, "mapped")
        model = load_model(student.path)
        found = dict(held(model, student, dict(model.named_parameters())))
        assert found.keys() == {e for e in student.inventory.tensors() if e.role != "router.correction"}
        assert all(torch.equal(value, student.read(entry)) for entry, value in found.items())


def test_each_pass_reads_every_window_once_in_an_order_of_its_own() -> None:
    corpus = Corpus.of([[i, i] for i in range(10)])
    chosen = RecoverySettings(kind="full", batch=4, epochs=2, seed=3)
    assert steps_of(chosen, 10) == 5
    windows = Windows(corpus, chosen)
    read = torch.cat([windows.batch(step)[:, 0] for step in range(5)]).tolist()
    first, second = read[:10], read[10:]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second
    assert windows.batch(3).tolist() == Windows(corpus, chosen).batch(3).tolist()
    other = RecoverySettings(kind="full", batch=4, seed=4)
    assert Windows(corpus, other).batch(0).tolist() != windows.batch(0).tolist()
    assert steps_of(other, 10) == 3 and steps_of(RecoverySettings(kind="full", steps=7), 10) == 7


def test_the_rate_rises_and_falls_as_stated() -> None:
    chosen = RecoverySettings(kind="full", rate=2.0, warmup=0.2)
    found = [rate(step, 10, chosen) for step in range(10)]
    assert found[:3] == [1.0, 2.0, 2.0]
    assert found[6] == pytest.approx(1.0) and found[9] == pytest.approx(1 + math.cos(math.pi * 7 / 8))
    assert found == sorted(found[:2]) + sorted(found[2:], reverse=True)
    assert rate(0, 1, RecoverySettings(kind="lora", warmup=0.0)) == 1e-4


def test_windows_at_once_change_nothing_but_rounding(text: str, tmp_path: Path) -> None:
    _, student = compressed("mixtral", "sparse")
    whole, parts = (
        recover(student.path, settings("full", text, steps=2, at_once=n), store_folder=tmp_path / "store")
        for n in (None, 3)
    )
    assert whole.path != parts.path
    a, b = tensors(whole.path), tensors(parts.path)
    assert all(torch.allclose(a[name], b[name], atol=2e-4) for name in a)


def test_the_plan_file_tells_of_each_recovery_and_the_same_call_trains_once(text: str, tmp_path: Path) -> None:
    source, student = compressed("mixtral", "mapped")
    store = tmp_path / "store"
    first = recover(student.path, settings("router_kd", text), teacher=source.path, store_folder=store)

    def never(*_: Any) -> None:
        raise AssertionError("trained again")

    again = recover(student.path, settings("router_kd", text), teacher=source.path, store_folder=store, progress=never)
    assert again == first
    second = recover(first.path, settings("lora", text), store_folder=store)
    document = json.loads((second.path / PLAN_FILE).read_text())
    before = json.loads((student.path / PLAN_FILE).read_text())
    history = document["provenance"].pop("recovery")
    assert (
        document["provenance"].pop("written")
        == Checkpoint.open(second.path).content
        != before["provenance"].pop("written")
    )
    assert document == before
    assert [entry["settings"]["kind"] for entry in history] == ["router_kd", "lora"]
    assert [len(entry["losses"]) for entry in history] == [6, 6]
    assert history[0]["teacher"] == source.content and history[1]["teacher"] is None
    assert history[1]["settings"]["alpha"] == 4.0 and "temperature" not in history[1]["settings"]
    (second.path / PLAN_FILE).unlink()
    with pytest.raises(CheckpointError, match="exists and holds something else"):
        recover(first.path, settings("lora", text), store_folder=store)


def test_an_uncompressed_checkpoint_may_be_trained_too(text: str, tmp_path: Path) -> None:
    folder = tiny_checkpoint("olmoe", tmp_path / "source")
    done = recover(folder, settings("lora", text), store_folder=tmp_path / "store")
    document = json.loads((done.path / PLAN_FILE).read_text())
    assert Plan.loads(json.dumps(document)) == Plan.identity(Checkpoint.open(folder).inventory)
    assert document["provenance"]["source"]["content"] == Checkpoint.open(folder).content
    assert (done.path / "generation_config.json").exists()


def refusals(tmp_path: Path) -> Iterator[tuple[type[Exception], str, dict[str, Any]]]:
    np.save(tmp_path / "uneven.npy", np.zeros((4, 1), dtype=np.int64))
    (tmp_path / "ragged.json").write_text("[[1, 2, 3], [1, 2]]")
    yield (
        RefusedError,
        "router_kd learns from the uncompressed model, and none was given",
        {"kind": "router_kd", "teacher": None},
    )
    yield RefusedError, "has 200 words and student has 160", {"kind": "router_kd", "teacher": tmp_path / "words"}
    yield RefusedError, "it was not made from other", {"kind": "expert_kd", "teacher": tmp_path / "other"}
    yield ConfigError, "windows of 1 to 1 tokens", {"kind": "lora", "corpus": str(tmp_path / "uneven.npy")}
    yield ConfigError, "windows of 2 to 3 tokens", {"kind": "lora", "corpus": str(tmp_path / "ragged.json")}
    yield ConfigError, "no such file", {"kind": "lora", "corpus": "absent.txt"}
    yield ConfigError, "the loss of step .* runs away", {"kind": "full", "rate": 1e30}


def test_what_cannot_be_done_is_one_clear_error(text: str, tmp_path: Path) -> None:
    source, student = compressed("mixtral", "mapped")
    tiny_checkpoint("mixtral", tmp_path / "words", vocab_size=200)
    tiny_checkpoint("mixtral", tmp_path / "other", seed=1)
    for kind, message, more in refusals(tmp_path):
        teacher = more.pop("teacher", source.path)
        chosen = settings(more.pop("kind"), more.pop("corpus", text), **more)
        with pytest.raises(kind, match=message):
            recover(student.path, chosen, teacher=teacher, store_folder=tmp_path / "s")
    dropped = apply(source, Plan.of(source.inventory, [LayerPlan(drop="moe")] * 3), tmp_path / "dropped")
    for kind, message in (("full", "trains routed experts, and dropped has none"), ("router_kd", "no router left")):
        with pytest.raises(RefusedError, match=message):
            recover(dropped, settings(kind, text), teacher=source.path, store_folder=tmp_path / "s")
    kept = apply(source, Plan.of(source.inventory, [LayerPlan(experts=(0, 1, 2))] * 3), tmp_path / "kept")
    with pytest.raises(RefusedError, match="each expert still gives what the teacher's gives"):
        recover(kept, settings("expert_kd", text), teacher=source.path, store_folder=tmp_path / "s")
    assert recover(kept, settings("expert_kd", text, balance=1.0, steps=1), teacher=source.path, store_folder=tmp_path)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "full", "rank": 8}, "rank is a setting of lora, not of full"),
        ({"kind": "lora", "temperature": 2.0}, "temperature is a setting of router_kd"),
        ({"kind": "router_kd", "experts": True}, "router_kd trains routers alone"),
        ({"kind": "expert_kd", "experts": False}, "nothing to distill into"),
        ({"kind": "lora", "lenght": 5}, "did you mean 'length'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RecoverySettings(**given)
    assert isinstance(RecoverySettings(kind="lora").resolved()["rate"], float)


def test_the_command_reads_a_file_and_options_and_says_what_it_took(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, student = compressed("mixtral", "mapped")
    (tmp_path / "recovery.yaml").write_text(f"kind: lora\ncorpus: {text}\nsteps: 5\nbatch: 8\nrank: 4\n")
    given = {"steps": 2, "rate": 1e-2, "kind": None}
    config, store = tmp_path / "recovery.yaml", tmp_path / "store"
    done = recover_from_command_line(str(student.path), given, config=config, teacher=None, store=store)
    assert (done.steps, done.path.parent) == (2, store / "checkpoints")
    assert "lora: 2 steps on 256 tokens of" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="did you mean 'steps'"):
        recover_from_command_line(str(student.path), {"step": 2}, config=config, teacher=None, store=store)
