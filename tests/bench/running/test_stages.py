"""A run that checks a target and trains its results, and knobs on the command line that YAML would read otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.applying.apply import apply
from bench.applying.written_moments import moments_digest
from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.content import stated_digest
from bench.records.mirror import Tracker
from bench.records.record import Record
from bench.running.recipe import expanded
from bench.running.run import Run
from bench.running.stages import timing_key, write_checkpoint
from bench.settings.method_settings import MethodConfig, parse_method
from bench.settings.recovery import RecoverySettings
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.timing_settings import TimingConfig
from bench.store.store import Store, digest_of
from methods.framework.errors import CheckpointError
from methods.framework.inside import Sparsity
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from tests.support.tiny import tiny_checkpoint

TRAINING = RecoverySettings(kind="router_kd", sequences=4, length=16, batch=4, steps=2, rate=1e-3)


def run(store: Path, recovery: RecoverySettings | None) -> list[Record]:
    config = RunConfig(
        model="pocket-mixtral",
        methods=(MethodConfig(name="gptq", knobs={"keep": 0.25}),),
        calibration=CalibrationConfig(sequences=2, length=16),
        timing=TimingConfig(enabled=False),
        recovery=recovery,
        target="vllm-cpu",
    )
    with Tracker("disabled", folder=store) as tracker:
        return Run(config, Store(store), tracker).execute()


def test_a_trained_result_is_a_run_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str | None] = []

    def counted(*parts: Any) -> str | None:
        hashed.append(moments_digest(*parts))
        return hashed[-1]

    for place in ("bench.running.stages.moments_digest", "bench.applying.apply.moments_digest"):
        monkeypatch.setattr(place, counted)
    _, plain = run(tmp_path, None)
    assert len(hashed) == 1 and hashed[0] is not None, (
        "moments are hashed once for the folder's name and its provenance"
    )
    base, trained = run(tmp_path, TRAINING)
    assert plain.status == trained.status == "complete" and plain.id != trained.id
    assert plain.recovery is None and base.recovery is None and plain.plan == trained.plan
    assert trained.recovery is not None and trained.title == "GPTQ + Router KD"
    assert trained.recovery.steps == 2 and trained.recovery.tokens == 2 * 4 * 16
    assert trained.recovery.settings["rate"] == 1e-3 and trained.knobs["recovery.kind"] == "router_kd"
    assert trained.target is not None and (trained.target.name, trained.target.outcome) == ("vllm-cpu", "dense")
    # Few tokens: some experts of the model see none, and are made from their weights alone.
    assert trained.cold_experts is not None and 0 <= trained.cold_experts < 48


def test_a_pattern_on_the_command_line_is_no_number_to_the_base_sixty() -> None:
    assert parse_method("wanda:keep=0.5,pattern=2:4").knobs == {"keep": 0.5, "pattern": "2:4"}
    assert parse_method("wanda:keep=0.5,pattern=2:4").configured().knobs["pattern"] == "2:4"


@pytest.mark.parametrize("name", ["routed_tokens", "input_square"])
def test_the_tokens_of_a_merged_expert_count_once(name: str, tmp_path: Path) -> None:
    inventory = Checkpoint.open(tiny_checkpoint("qwen3_moe", tmp_path)).inventory
    merge = Merge(into=1, members=(1, 3), weights=(0.5, 0.5))
    plan = Plan.of(inventory, [LayerPlan(experts=(0, 1, 2, 4, 5, 6, 7), merges=(merge,))] * len(inventory.layers))
    shape = (7,) if name == "routed_tokens" else (7, inventory.hidden)
    measured = np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    wide = expanded(Stats({name: (measured,) * len(inventory.layers)}), name, plan, inventory)[0]
    assert wide is not None and len(wide) == 8
    assert np.array_equal(wide[[0, 1, 2, 4, 5, 6, 7]], measured)
    assert np.array_equal(wide[3], np.zeros_like(wide[3]) if name == "routed_tokens" else measured[1])


def test_a_timing_depends_on_both_contents_and_on_how_it_is_taken() -> None:
    keys = [
        timing_key("a", "b", TimingConfig(), ("torch",)),
        timing_key("a", "c", TimingConfig(), ("torch",)),
        timing_key("c", "b", TimingConfig(), ("torch",)),
        timing_key("a", "b", TimingConfig(repeats=6), ("torch",)),
        timing_key("a", "b", TimingConfig(batch=8), ("torch",)),
    ]
    assert len({digest_of(key) for key in keys}) == len(keys)
    assert timing_key("a", "b", TimingConfig(), ("torch",)) == keys[0]


def test_a_plan_written_from_other_statistics_is_another_checkpoint(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint("olmoe", tmp_path / "source"))
    inventory = checkpoint.inventory
    plan = Plan.of(inventory, [LayerPlan(sparsity=Sparsity(share=0.5, kernel="wanda"))] * len(inventory.layers))
    width = next(inventory.layers[0].with_role("expert.gate")).shape[0]
    sizes = {"input_square": inventory.hidden, "channel_square": width}
    written = []
    for seed in (0, 0, 1):
        rng = np.random.default_rng(seed)
        values = {n: tuple(rng.uniform(1, 2, (8, sizes[n])) for _ in inventory.layers) for n in sorted(plan.moments)}
        written.append(write_checkpoint(checkpoint, plan, Store(tmp_path / "store"), {}, Stats(values)))
    assert written[0] == written[1] != written[2]


def test_what_is_computed_is_not_found_again_after_an_update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint("olmoe", tmp_path / "source"))
    inventory = checkpoint.inventory
    halves = Merge(into=0, members=(0, 1), weights=(0.5, 0.5))
    merged = Plan.of(inventory, [LayerPlan(experts=(0, 2), merges=(halves,), top_k=2)] * len(inventory.layers))
    copied = Plan.of(inventory, [LayerPlan(experts=(0, 2), top_k=2)] * len(inventory.layers))
    store = Store(tmp_path / "store")
    before = [write_checkpoint(checkpoint, plan, store, {}) for plan in (merged, copied)]
    apply(checkpoint, merged, tmp_path / "named")
    timing = timing_key("a", "b", TimingConfig(), ())
    monkeypatch.setattr("bench.store.versions._version", {"torch": "99"}.get)
    after = [write_checkpoint(checkpoint, plan, store, {}) for plan in (merged, copied)]
    assert after[0] != before[0] and after[1] == before[1], "only what was copied is what it was"
    with pytest.raises(CheckpointError, match="computed by other versions"):
        apply(checkpoint, merged, tmp_path / "named")
    assert timing_key("a", "b", TimingConfig(), ()) != timing


def test_a_checkpoint_states_the_content_that_its_files_have(tmp_path: Path) -> None:
    """A run takes the stated digest for its own, freshly written or found again, and does not hash the files once more."""
    checkpoint = Checkpoint.open(tiny_checkpoint("olmoe"))
    plan = Plan.of(checkpoint.inventory, [LayerPlan(experts=(0, 2, 3, 5, 6, 7))] * len(checkpoint.inventory.layers))
    for _ in range(2):
        written = write_checkpoint(checkpoint, plan, Store(tmp_path / "store"), {})
        assert stated_digest(written) == Checkpoint.open(written).content
