"""The study on disk: trials of dead workers are given back, a torn line is cut off, other settings are refused."""

from __future__ import annotations

import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from methods.framework.errors import ConfigError, RecordError
from sweeps.journal import JOURNAL, open_study, reap
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from tests.support.tiny_sweeps import drawn, sweep


def lost_trial(study: Any, **process: Any) -> int:
    """Begin a trial as a process that no longer exists would have left it."""
    from optuna.distributions import FloatDistribution

    trial = study.ask({"keep.0": FloatDistribution(0.1, 1.0)})
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0}
    trial.set_user_attr("process", {**own, **process})
    return int(trial.number)


def test_trials_of_dead_workers_are_queued_again(home: Path, tmp_path: Path) -> None:
    config = sweep(home)
    study = open_study(config, config.folder(tmp_path))
    reused = lost_trial(study)  # this process's number, but begun at another time
    gone = lost_trial(study, pid=2**22 + 1)
    alive = lost_trial(study, started=psutil.Process().create_time())
    elsewhere = lost_trial(study, host="another")
    assert reap(study, stale_after=3600) == [reused, gone]
    assert reap(study, stale_after=3600) == []
    assert reap(study, stale_after=1e-9) == [elsewhere]
    states = [trial.state.name for trial in study.trials]
    assert states == ["FAIL", "FAIL", "RUNNING", "FAIL", "WAITING", "WAITING", "WAITING"]
    lost = [study.trials[number].params for number in (reused, gone, elsewhere)]
    taken = [lost_trial(study) for _ in lost]
    assert [study.trials[number].params for number in taken] == lost
    assert alive == 2


def test_a_plan_that_always_kills_is_given_up(home: Path, tmp_path: Path) -> None:
    config = sweep(home)
    study = open_study(config, config.folder(tmp_path))
    lost_trial(study)
    for _ in range(2):
        assert reap(study, 3600)
        lost_trial(study)
    assert reap(study, 3600)
    assert [trial.state.name for trial in study.trials] == ["FAIL", "FAIL", "FAIL"]


def test_a_torn_last_line_is_cut_off(home: Path, resident: Resident, whole: SweepResult, tmp_path: Path) -> None:
    shutil.copytree(home / "whole", tmp_path, dirs_exist_ok=True)
    with (sweep(home).folder(tmp_path) / JOURNAL).open("a") as file:
        file.write('{"op_code":4,"worker_id":"x","stu')
    result = run_sweep(sweep(home, trials=7), store=tmp_path, resident=resident)
    assert result.count("complete") == 7
    assert drawn(result.rows)[:6] == drawn(whole.rows)


def test_other_settings_are_refused_and_named(home: Path, resident: Resident, whole: SweepResult) -> None:
    store = home / "whole"
    with pytest.raises(ConfigError, match=r"budget\.0\.keep: was 0\.5, is 0\.75"):
        run_sweep(sweep(home, trials=7, budget={"of": "experts", "keep": 0.75}), store=store, resident=resident)
    other = replace(resident, identity={**resident.identity, "model": "another"})
    with pytest.raises(ConfigError, match="model: was"):
        run_sweep(sweep(home, trials=7), store=store, resident=other)
    assert drawn(run_sweep(sweep(home), store=store, resident=resident).rows) == drawn(whole.rows)


@pytest.mark.parametrize("line", [b"{", b"[1]\n", b'{"op_code": "four"}\n', b'{"op_code": 5}\n', b"\xff\n", b"{}\n"])
def test_a_damaged_line_is_one_error(line: bytes, home: Path, tmp_path: Path) -> None:
    config = sweep(home)
    open_study(config, config.folder(tmp_path))
    path = config.folder(tmp_path) / JOURNAL
    whole = path.read_bytes()
    first, rest = whole.split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" * (not line.endswith(b"\n")) + rest)
    with pytest.raises(RecordError, match=r"study\.journal .*restore it from a copy"):
        open_study(config, config.folder(tmp_path))
