"""Several workers on one study, and workers that are killed in the middle of a trial."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from methods.framework.errors import EvaluationError
from sweeps.executor import Worker
from sweeps.journal import open_study
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.workers import MODULE, arguments, write_config
from tests.support.sweep_forks import Child, Forking, Nursery, wait_for
from tests.support.tiny_sweeps import drawn, sweep


def test_killed_workers_lose_nothing(
    home: Path, resident: Resident, whole: SweepResult, nursery: Nursery, tmp_path: Path
) -> None:
    config = sweep(home)
    study = open_study(config, config.folder(tmp_path))
    path = write_config(config, tmp_path)
    worker = Worker(MODULE, arguments(path, tmp_path, 0), path.parent / "worker-0.log")
    # The second one first takes up again what the first one had in hand, and is ended in the middle of that.
    for number, hold, code in ((signal.SIGKILL, 3, -signal.SIGKILL), (signal.SIGTERM, 1, 130)):
        child = Child(nursery, worker, hold=hold)
        wait_for(lambda child=child: child.mark.exists() or child.poll() is not None)
        child.send(number)
        wait_for(lambda child=child: child.poll() is not None)
        assert child.poll() == code, worker.log.read_text()
    states = [trial.state.name for trial in study.get_trials(False)]
    assert states == ["COMPLETE", "COMPLETE", "FAIL", "FAIL", "WAITING"]
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert [row.reason for row in result.rows if row.state == "failed"] == ["the worker was killed", "cancelled"]
    assert [(p, plan) for p, plan, _ in drawn(result.rows)] == [(p, plan) for p, plan, _ in drawn(whole.rows)]


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
