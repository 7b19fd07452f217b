"""A run that checks a target and trains its results, and knobs on the command line that YAML would read otherwise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.records.mirror import Tracker
from bench.records.record import Record
from bench.running.recipe import expanded
from bench.running.run import Run
from bench.settings.method_settings import MethodConfig, parse_method
from bench.settings.recovery import RecoverySettings
from bench.settings.run_settings import RunConfig
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.timing_settings import TimingConfig
from bench.store.store import Store
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


def test_a_trained_result_is_a_run_of_its_own(tmp_path: Path) -> None:
    _, plain = run(tmp_path, None)
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
