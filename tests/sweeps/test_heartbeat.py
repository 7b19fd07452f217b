"""Signs of life: whose process is looked up, whose sign is watched, and what a silent worker finds when it is back."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from optuna.distributions import FloatDistribution

import sweeps.heartbeat
import sweeps.losses
from sweeps.asking import begin
from sweeps.heartbeat import BEAT, PROCESS, Pulse, Watch, is_gone, process_space, signature
from sweeps.journal import JOURNAL, bind, bind_code, open_study, reap
from sweeps.outcome import LOST
from sweeps.resident import Resident
from sweeps.samplers.chosen import sampler
from sweeps.study import run_sweep
from tests.support.sweep_forks import wait_for
from tests.support.tiny_sweeps import sweep


def test_a_process_is_looked_up_where_its_number_means_something() -> None:
    own = signature()
    assert is_gone(own) is False
    assert is_gone({**own, "started": own["started"] - 5.0}) is True, "a younger process with the same number"
    assert is_gone({**own, "pid": 2**22 + 1}) is True
    host, boot, names = process_space().split("/")
    for space in (f"other/{boot}/{names}", f"{host}/another-boot/{names}", f"{host}/{boot}/1"):
        assert is_gone({**own, "space": space, "pid": 2**22 + 1}) is None, "another machine or container"


def test_a_sign_is_old_when_it_was_seen_unchanged_for_long_enough() -> None:
    now = 0.0
    watch = Watch(60.0, clock=lambda: now)
    assert not watch.is_old(3, "a")
    now = 50.0
    assert not watch.is_old(3, "b") and not watch.is_old(4, "a")
    now = 110.0
    assert not watch.is_old(3, "b")
    now = 111.0
    assert watch.is_old(3, "b") and watch.is_old(4, "a") and not watch.is_old(3, "c")


def test_a_pulse_renews_the_sign_and_ends(home: Path, tmp_path: Path) -> None:
    config = sweep(home, stale_after=1)
    study = open_study(config, config.folder(tmp_path))
    trial = begin(study, {"x": FloatDistribution(0, 1)}, lambda drawn: sampler(config.sampler, drawn))

    def beats() -> Any:
        return study.get_trials(False)[trial.number].user_attrs.get(BEAT)

    with Pulse(study._storage, trial._trial_id):
        wait_for(lambda: beats() is not None)
        first = beats()
        wait_for(lambda: beats() > first)
    assert study.trials[0].user_attrs[PROCESS]["pid"] == os.getpid()
    last = beats()
    time.sleep(1.5)
    assert beats() == last
    with Pulse(object(), 0):
        pass


def test_a_silent_worker_of_another_host_costs_its_trial_alone(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep(home, stale_after=1, trials=3)
    study = open_study(config, config.folder(tmp_path))
    bind_code(study, config, config.folder(tmp_path))
    bind(study, "inputs", dict(resident.identity), config.folder(tmp_path) / JOURNAL)
    elsewhere = {**signature(), "space": "another"}
    with monkeypatch.context() as patch:
        patch.setattr(sweeps.heartbeat, "signature", lambda: elsewhere)
        begin(study, {"keep.0": FloatDistribution(0.1, 1.0)}, lambda drawn: sampler(config.sampler, drawn))
    reap(study)
    assert [trial.state.name for trial in study.trials] == ["RUNNING"], "nobody knows yet that it is silent"
    began = time.monotonic()
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert time.monotonic() - began < 30
    assert result.count("complete") == 3
    assert [(row.state, row.reason) for row in result.rows if row.state != "complete"] == [("failed", LOST)]


def test_a_worker_that_was_taken_for_lost_goes_on(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = sweep(home, trials=3)
    true_nll = sweeps.losses.nll
    lost: list[int] = []

    def slow(*arguments: Any) -> float:
        study = open_study(config, config.folder(tmp_path))
        if not lost:
            with monkeypatch.context() as patch:
                patch.setattr(psutil.Process, "create_time", lambda process: 1.0)
                reap(study)
            lost.extend(trial.number for trial in study.trials if trial.state.name == "FAIL")
        return true_nll(*arguments)

    monkeypatch.setattr(sweeps.losses, "nll", slow)
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert lost == [0] and result.count("complete") == 3
    assert [row.number for row in result.rows if row.state == "failed"] == [0]
    assert result.rows[0].parameters == result.rows[1].parameters
