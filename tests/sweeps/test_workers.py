"""Several workers on one study, and workers that are killed in the middle of a trial."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from methods.framework.errors import EvaluationError
from sweeps.executor import Worker
from sweeps.journal import open_study
from sweeps.outcome import LOST, SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from sweeps.workers import MODULE, arguments, write_config
from tests.support.sweep_forks import STAGES, Child, Forking, Nursery, wait_for
from tests.support.tiny_sweeps import drawn, sweep


def end_at(stage: str, hold: int, config: SweepConfig, store: Path, nursery: Nursery, by: signal.Signals) -> int | None:
    """Let a worker come to a stage, end it there, and return its exit code."""
    worker = Worker(MODULE, arguments(write_config(config, store), store, 0), config.folder(store) / "worker-0.log")
    child = Child(nursery, worker, hold=hold, stage=stage)
    wait_for(lambda: child.mark.exists() or child.poll() is not None)
    child.send(by)
    wait_for(lambda: child.poll() is not None)
    return child.poll()


def test_killed_workers_lose_nothing(
    home: Path, resident: Resident, whole: SweepResult, nursery: Nursery, tmp_path: Path
) -> None:
    config = sweep(home)
    study = open_study(config, config.folder(tmp_path))
    # The second one first takes up again what the first one had in hand, and is ended in the middle of that.
    assert end_at("plan", 3, config, tmp_path, nursery, signal.SIGKILL) == -signal.SIGKILL
    assert end_at("plan", 1, config, tmp_path, nursery, signal.SIGTERM) == 130
    states = [trial.state.name for trial in study.get_trials(False)]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "WAITING"]
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert [row.reason for row in result.rows if row.state == "failed"] == [LOST, "cancelled"]
    assert [(p, plan) for p, plan, _ in drawn(result.rows)] == [(p, plan) for p, plan, _ in drawn(whole.rows)]


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes", "random"])
def test_killed_anywhere_it_draws_what_it_would_have_drawn(
    home: Path, resident: Resident, nursery: Nursery, tmp_path: Path, name: str
) -> None:
    config = sweep(home, sampler={"name": name, "startup": 2, "population": 3}, trials=9)
    whole = run_sweep(config, store=tmp_path / "whole", resident=resident)
    parameters = len(whole.rows[0].parameters)
    # In the middle of the second trial that is drawn, and in the second trial that comes to the other stages.
    for stage in STAGES:
        hold = parameters + 2 if stage == "ask" else 2
        assert end_at(stage, hold, config, tmp_path / "killed", nursery, signal.SIGKILL) == -signal.SIGKILL
    result = run_sweep(config, store=tmp_path / "killed", resident=resident)
    assert [row.reason for row in result.rows if row.state == "failed"] == [LOST] * (len(STAGES) - 1), (
        "a trial that was not drawn to its end is not in the study"
    )
    assert [(p, plan) for p, plan, _ in drawn(result.rows)] == [(p, plan) for p, plan, _ in drawn(whole.rows)]
    assert len({json.dumps(row.parameters) for row in whole.rows}) > 5


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_other_worker_ends_the_study(home: Path, nursery: Nursery, tmp_path: Path, stage: str) -> None:
    config = sweep(home, trials=5)
    study = open_study(config, config.folder(tmp_path))
    path = write_config(config, tmp_path)
    one, other = (
        Worker(MODULE, arguments(path, tmp_path, number), path.parent / f"worker-{number}.log") for number in (0, 1)
    )
    killed = Child(nursery, one, hold=2, stage=stage)
    wait_for(killed.mark.exists)
    left = Child(nursery, other, wait_for=[path.parent / "go"])
    wait_for(left.mark.exists)
    killed.kill()
    (path.parent / "go").touch()
    wait_for(lambda: left.poll() is not None)
    assert left.poll() == 0, other.log.read_text()
    states = [trial.state.name for trial in study.get_trials(False)]
    assert states.count("COMPLETE") >= 5 and states.count("FAIL") == (stage != "ask")
    assert set(states) <= {"COMPLETE", "FAIL"}, "nothing is left in hand or in the queue"


def test_two_processes_that_know_nothing_of_each_other(home: Path, nursery: Nursery, tmp_path: Path) -> None:
    config = sweep(home, trials=7)
    study = open_study(config, config.folder(tmp_path))
    command = arguments(write_config(config, tmp_path), tmp_path, 0)
    logs = [config.folder(tmp_path) / f"process-{number}.log" for number in range(2)]
    marks = [log.with_suffix(".mark") for log in logs]
    children = [Child(nursery, Worker(MODULE, command, log), wait_for=marks) for log in logs]
    wait_for(lambda: all(child.poll() is not None for child in children))
    assert [child.poll() for child in children] == [0, 0], [log.read_text() for log in logs]
    trials = study.get_trials(False)
    assert {trial.state.name for trial in trials} == {"COMPLETE"} and 7 <= len(trials) <= 8
    assert len({trial.user_attrs["process"]["pid"] for trial in trials}) == 2


def test_several_workers_share_one_study(home: Path, nursery: Nursery, tmp_path: Path) -> None:
    told: list[int] = []
    config = sweep(home, jobs=2, trials=8, executor=Forking.of(nursery))
    result = run_sweep(config, store=tmp_path, progress=lambda row: told.append(row.number))
    assert result.count("complete") >= 8 and sorted(told) == [row.number for row in result.rows]
    assert {trial.state for trial in result.rows} <= {"complete", "refused"}
    distinct = {json.dumps(row.parameters, sort_keys=True) for row in result.rows}
    assert len(distinct) == len(result.rows), "two workers drew the same trial"
    trials = open_study(config, config.folder(tmp_path)).get_trials(False)
    assert len({trial.user_attrs["process"]["pid"] for trial in trials}) == 2


def test_workers_that_cannot_start_are_reported(home: Path, nursery: Nursery, tmp_path: Path) -> None:
    config = sweep(home, jobs=2, model=str(tmp_path / "absent"), executor=Forking.of(nursery))
    with pytest.raises(
        EvaluationError, match=r"2 of 2 workers failed and 6 trials are missing; worker \[0\]: .*absent"
    ):
        run_sweep(config, store=tmp_path)
