"""Trials in stages: what the pruner ends costs its windows alone, and nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import sweeps.losses
import sweeps.meter
from methods.framework.errors import ConfigError
from sweeps.journal import open_study
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from tests.support.tiny_sweeps import drawn, objectives, sweep

STAGES = {"windows": [3, 6], "p": 0.2}


def staged(home: Path, **changes: Any) -> SweepConfig:
    return sweep(home, **{"trials": 14, "stages": STAGES, "sampler": {"name": "random"}, **changes})


@pytest.fixture(scope="module")
def pruned(home: Path, resident: Resident, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return run_sweep(staged(home), store=tmp_path_factory.mktemp("pruned"), resident=resident)


def test_trials_that_end_early_cost_their_windows_and_count(pruned: SweepResult) -> None:
    ended = [row for row in pruned.rows if row.state == "pruned"]
    assert ended and pruned.count("complete") + len(ended) == 14
    assert {row.windows for row in ended} <= {3, 6} and not any(row.scores for row in ended)
    assert {row.windows for row in pruned.rows if row.state == "complete"} == {8}
    assert all(row.plan is not None for row in ended)


def test_a_pruner_that_ends_none_finds_what_no_stages_find(
    home: Path, resident: Resident, tmp_path: Path, pruned: SweepResult
) -> None:
    plain = run_sweep(staged(home, stages=None, name="plain"), store=tmp_path, resident=resident)
    none = run_sweep(staged(home, stages={**STAGES, "pruner": "none"}, name="none"), store=tmp_path, resident=resident)
    scores = [row.scores["nll"] for row in plain.rows]
    assert [row.scores["nll"] for row in none.rows] == pytest.approx(scores, rel=1e-6)
    assert {row.windows for row in none.rows} == {8}
    assert [row.plan for row in pruned.rows] == [row.plan for row in plain.rows]
    for row, score in zip(pruned.rows, scores, strict=True):
        if row.state == "pruned":
            best = min(other.scores["nll"] for other in pruned.rows[: row.number] if other.state == "complete")
            assert score > best - 1e-9 or row.windows == 3, "six windows of eight that are worse"


def test_windows_are_measured_once(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, windows = sweeps.losses.nll, 0

    def counted(model: Any, windows_NS: Any, batch_size: int) -> Any:
        nonlocal windows
        windows += len(windows_NS)
        return original(model, windows_NS, batch_size)

    monkeypatch.setattr(sweeps.losses, "nll", counted)
    first = run_sweep(staged(home), store=tmp_path, resident=resident)
    different = {row.plan: row.windows for row in first.rows if row.same_as is None}
    assert windows == sum(count or 0 for count in different.values()) < 14 * 8
    measured = windows
    again = run_sweep(staged(home, name="again"), store=tmp_path, resident=resident)
    assert windows == measured
    assert [(row.state, row.plan, row.windows) for row in again.rows] == [
        (row.state, row.plan, row.windows) for row in first.rows
    ]


def test_a_search_that_went_on_ends_the_same_trials(
    home: Path, resident: Resident, tmp_path: Path, pruned: SweepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = sweeps.losses.nll, 0

    def dies(*rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return original(*rest)

    monkeypatch.setattr(sweeps.losses, "nll", dies)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(staged(home), store=tmp_path, resident=resident)
    parts = run_sweep(staged(home), store=tmp_path, resident=resident)
    assert drawn(parts.rows) == drawn(pruned.rows)
    ended = [[(row.plan, row.windows) for row in one.rows if row.state == "pruned"] for one in (parts, pruned)]
    assert ended[0] == ended[1]


def test_the_median_is_of_running_means(home: Path, resident: Resident, tmp_path: Path) -> None:
    config = staged(home, stages={"windows": [3], "pruner": "median", "startup": 2})
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert 0 < result.count("pruned") < 12
    trials = open_study(config, config.folder(tmp_path)).get_trials()
    assert {tuple(trial.intermediate_values) for trial in trials} == {(3,), (3, 8)}


def test_stages_that_decide_nothing_are_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"has 8 windows, so none is left after 8"):
        staged(home, stages={"windows": [4, 8]})
    with pytest.raises(ConfigError, match=r"windows ascend.*found \[6, 3\]"):
        staged(home, stages={"windows": [6, 3]})
    with pytest.raises(ConfigError, match=r"2 windows cannot tell anything at the level 0\.1"):
        staged(home, stages={"windows": [2]})
    with pytest.raises(ConfigError, match="stages need one objective on text"):
        staged(home, objectives=objectives(home, "nll", "size"), sampler={"name": "random"})


def test_without_stages_the_identity_is_as_before(home: Path) -> None:
    assert "stages" not in staged(home, stages=None).identity()
    assert staged(home).identity()["stages"]["windows"] == [3, 6]
