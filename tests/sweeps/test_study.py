"""Sweeps on a tiny model: resumed, refused, mended after a kill, and the same whether interrupted or not."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import sweeps.budget
import sweeps.objective
import sweeps.resident
import sweeps.trials
from bench.applying.in_memory import realised
from bench.store.store import Store
from methods.framework.errors import ConfigError, EvaluationError, RefusedError
from methods.framework.plan import Plan
from sweeps.journal import JOURNAL, open_study, reap
from sweeps.outcome import TrialRow, front
from sweeps.resident import Resident, open_resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig, parse_sweep
from sweeps.workers import command, write_config
from tests.support.tiny import tiny_checkpoint, tiny_tokens


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model and two files of token ids."""
    folder = tmp_path_factory.mktemp("sweep")
    tiny_checkpoint("olmoe", folder / "model")
    for name, seed in (("calibration", 0), ("held_out", 1)):
        (folder / f"{name}.json").write_text(json.dumps(tiny_tokens(8, 16, seed=seed).tolist()))
    return folder


def sweep(home: Path, **changes: Any) -> SweepConfig:
    held_out = {"corpus": str(home / "held_out.json"), "sequences": 8, "length": 16}
    base: dict[str, Any] = {
        "name": "s",
        "model": str(home / "model"),
        "method": "criterion",
        "budget": {"of": "experts", "keep": 0.5},
        "calibration": {"corpus": str(home / "calibration.json"), "sequences": 8, "length": 16},
        "objectives": [{"kind": "nll", "windows": held_out}],
        "sampler": {"startup": 4},
        "trials": 6,
    }
    return parse_sweep({**base, **changes})


BOTH = ("nll", "size")


def objectives(home: Path, *kinds: str) -> list[dict[str, Any]]:
    known = {
        "nll": {"kind": "nll", "windows": {"corpus": str(home / "held_out.json"), "sequences": 8, "length": 16}},
        "kl": {"kind": "kl", "sequences": 2},
        "size": {"kind": "size", "of": "bytes"},
    }
    return [known[kind] for kind in kinds]


@pytest.fixture(scope="module")
def resident(home: Path) -> Resident:
    return open_resident(sweep(home, objectives=objectives(home, "nll", "kl")), home / "store")


def drawn(rows: tuple[TrialRow, ...]) -> list[tuple[Any, ...]]:
    return [(row.parameters, row.plan, row.scores) for row in rows if row.state == "complete"]


def test_scores_are_those_of_the_plan(home: Path, resident: Resident, tmp_path: Path) -> None:
    result = run_sweep(sweep(home, objectives=objectives(home, *BOTH)), store=tmp_path, resident=resident)
    assert result.count("complete") == 6
    windows = tiny_tokens(8, 16, seed=1)
    for row in result.rows:
        plan = Plan.loads((Store(tmp_path).plans / f"{row.plan}.json").read_text())
        assert sum(len(layer.experts or range(8)) for layer in plan.layers) == 12 == row.sizes["experts"]
        with realised(resident.model, resident.inventory, plan) as model, torch.no_grad():
            logits = model(windows).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
        assert row.scores["nll"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes", "random"])
def test_stopped_and_continued_equals_in_one_go(home: Path, resident: Resident, tmp_path: Path, name: str) -> None:
    settings = {"name": name, "startup": 3, "population": 4}
    whole = run_sweep(sweep(home, sampler=settings, trials=9), store=tmp_path / "a", resident=resident)
    for trials in (4, 5, 9):
        parts = run_sweep(sweep(home, sampler=settings, trials=trials), store=tmp_path / "b", resident=resident)
        assert parts.count("complete") == trials
    assert drawn(parts.rows) == drawn(whole.rows)
    assert len({json.dumps(row.parameters) for row in whole.rows}) > 6


def test_the_order_of_the_file_does_not_matter(home: Path, resident: Resident, tmp_path: Path) -> None:
    orders = (["b", "alpha", "beta", "keep"], ["keep", "beta", "alpha", "b"])
    configs = [sweep(home, space=dict.fromkeys(order, "auto")) for order in orders]
    results = [
        run_sweep(config, store=tmp_path / str(index), resident=resident) for index, config in enumerate(configs)
    ]
    assert drawn(results[0].rows) == drawn(results[1].rows)


def test_a_complete_sweep_does_not_load_the_model(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run_sweep(sweep(home), store=tmp_path, resident=resident)
    files = {path: path.read_bytes() for path in first.folder.rglob("*.csv")}
    monkeypatch.setattr(sweeps.resident, "open_resident", lambda *_: pytest.fail("loaded"))
    assert drawn(run_sweep(sweep(home), store=tmp_path).rows) == drawn(first.rows)
    assert all(path.read_bytes() == content for path, content in files.items())


def test_other_settings_are_refused_and_named(home: Path, resident: Resident, tmp_path: Path) -> None:
    run_sweep(sweep(home, trials=2), store=tmp_path, resident=resident)
    with pytest.raises(ConfigError, match=r"budget\.keep: was 0\.5, is 0\.75"):
        run_sweep(sweep(home, trials=4, budget={"of": "experts", "keep": 0.75}), store=tmp_path, resident=resident)
    other = replace(resident, identity={**resident.identity, "model": "another"})
    with pytest.raises(ConfigError, match="model: was"):
        run_sweep(sweep(home, trials=4), store=tmp_path, resident=other)
    assert run_sweep(sweep(home, trials=2), store=tmp_path, resident=resident).count("complete") == 2


def test_equal_plans_are_measured_once(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    true_nll = sweeps.objective.nll
    monkeypatch.setattr(sweeps.objective, "nll", lambda *arguments: calls.append(1) or true_nll(*arguments))
    config = sweep(home, space={"b": "auto", "beta": "auto"}, fixed={"keep": 0.5, "alpha": 0}, trials=10)
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert len(calls) == len({row.plan for row in result.rows}) <= 6
    for row in result.rows:
        if row.same_as is not None:
            assert (row.plan, row.scores) == (result.rows[row.same_as].plan, result.rows[row.same_as].scores)


def test_a_budget_can_refuse_instead(home: Path, resident: Resident, tmp_path: Path) -> None:
    config = sweep(home, budget={"of": "experts", "keep": 0.6, "how": "refuse"}, sampler={"name": "random"}, trials=5)
    result = run_sweep(config, store=tmp_path, resident=resident)
    refused = [row for row in result.rows if row.state == "refused"]
    assert refused and any("above the budget of 0.6" in str(row.reason) for row in refused)
    assert all(row.sizes["experts"] <= 0.6 * 24 for row in result.rows if row.state == "complete")
    assert result.count("complete") == 5


def test_a_budget_that_nothing_meets_stops_the_sweep(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.trials, "REFUSALS", 4)
    with pytest.raises(RefusedError, match=r"4 trials were refused.*cannot be brought to 0\.1"):
        run_sweep(sweep(home, budget={"of": "experts", "keep": 0.1}), store=tmp_path, resident=resident)


def test_failures_stop_the_sweep_and_keep_what_is_complete(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(sweep(home, trials=2), store=tmp_path, resident=resident)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps.objective, "nll", lambda *_: float("nan"))
        with pytest.raises(EvaluationError, match="objective nll is not a number"):
            run_sweep(sweep(home), store=tmp_path, resident=resident)
    result = run_sweep(sweep(home), store=tmp_path, resident=resident)
    assert (result.count("complete"), result.count("failed")) == (6, 3)


def test_ctrl_c_gives_the_trial_back(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run_sweep(sweep(home), store=tmp_path / "whole", resident=resident)

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    run_sweep(sweep(home, trials=5), store=tmp_path / "cut", resident=resident)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps.budget.Planner, "plan", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep(home), store=tmp_path / "cut", resident=resident)
    result = run_sweep(sweep(home), store=tmp_path / "cut", resident=resident)
    assert [row.state for row in result.rows] == ["complete"] * 5 + ["failed", "complete"]
    assert drawn(result.rows) == drawn(whole.rows)


def lost_trial(study: Any, **process: Any) -> int:
    """Begin a trial as a process that no longer exists would have left it."""
    from optuna.distributions import FloatDistribution

    trial = study.ask({"keep.0": FloatDistribution(0.1, 1.0)})
    own = {"host": socket.gethostname(), "pid": os.getpid(), "started": 1.0}
    trial.set_user_attr("process", {**own, **process})
    return int(trial.number)


def test_trials_of_dead_workers_are_queued_again(home: Path, tmp_path: Path) -> None:
    import psutil

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


def test_a_torn_last_line_is_cut_off(home: Path, resident: Resident, tmp_path: Path) -> None:
    run_sweep(sweep(home, trials=3), store=tmp_path, resident=resident)
    with (sweep(home).folder(tmp_path) / JOURNAL).open("a") as file:
        file.write('{"op_code":4,"worker_id":"x","stu')
    assert run_sweep(sweep(home, trials=5), store=tmp_path, resident=resident).count("complete") == 5


def test_the_outcome_is_written(home: Path, resident: Resident, tmp_path: Path) -> None:
    config = sweep(home, budget=None, objectives=objectives(home, *BOTH), trials=12)
    result = run_sweep(config, store=tmp_path, resident=resident)
    with (result.folder / "trials.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["trial"]) for line in lines] == [row.number for row in result.rows]
    complete = [line for line in lines if line["state"] == "complete"]
    assert [float(line["score.nll"]) for line in complete] == [
        row.scores["nll"] for row in result.rows if row.state == "complete"
    ]
    listed = json.loads((result.folder / "front.json").read_text())["front"]
    assert {entry["trial"] for entry in listed} == {row.number for row in result.front}
    for entry in listed:
        plan = Plan.loads((result.folder / entry["file"]).read_text())
        assert plan.digest == entry["plan"]
    assert {path.name for path in (result.folder / "front").iterdir()} == {Path(e["file"]).name for e in listed}


def test_front_against_pairwise_comparison() -> None:
    values = [(1.0, 9.0), (2.0, 5.0), (2.0, 6.0), (3.0, 5.0), (4.0, 1.0), (0.5, 9.5), (4.0, 1.0)]
    rows = [TrialRow(i, "complete", scores={"a": a, "b": b}) for i, (a, b) in enumerate(values)]
    rows.append(TrialRow(7, "complete", scores={"a": 0.0, "b": 0.0}, same_as=0))
    rows.append(TrialRow(8, "failed"))
    assert [row.number for row in front(rows, {"a": "minimize", "b": "minimize"})] == [0, 1, 4, 5, 6]
    assert [row.number for row in front(rows, {"a": "minimize", "b": "maximize"})] == [5]
    assert [row.number for row in front(rows, {"a": "maximize"})] == [4]
    assert front([], {"a": "minimize"}) == ()


def test_windows_shared_with_the_calibration_are_refused(home: Path, tmp_path: Path) -> None:
    windows = {"corpus": str(home / "calibration.json"), "sequences": 8, "length": 16, "seed": 9}
    with pytest.raises(ConfigError, match="8 of 8 held-out windows are also calibration windows"):
        run_sweep(sweep(home, objectives=[{"kind": "nll", "windows": windows}]), store=tmp_path)


def test_the_terminal_shows_trials_and_the_front(home: Path, tmp_path: Path) -> None:
    from rich.console import Console

    from sweeps.terminal import show_sweep

    console = Console(record=True, width=200, file=io.StringIO())
    result = show_sweep(sweep(home, trials=3), tmp_path, console)
    text = console.export_text()
    best = min(result.rows, key=lambda row: row.scores["nll"])
    assert all(f"trial {row.number:4d}  nll {row.scores['nll']:.5g}" in text for row in result.rows)
    assert str(best.plan)[:16] in text and "3 complete, 0 refused, 0 failed" in text


@contextmanager
def slow_worker(config: SweepConfig, store: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker whose every trial takes a second longer."""
    slow = (
        "import sys, time\n"
        "from sweeps.budget import Planner\n"
        "plan = Planner.plan\n"
        "Planner.plan = lambda *a: (time.sleep(1.0), plan(*a))[1]\n"
        "from sweeps.worker import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    arguments = command(write_config(config, store), store, 0)
    worker = subprocess.Popen([sys.executable, "-c", slow, *arguments[3:]], stderr=subprocess.DEVNULL)
    try:
        yield worker
    finally:
        worker.kill()
        worker.wait()


def wait_for(condition: Any, seconds: float = 90.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


@pytest.mark.e2e
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_worker_loses_nothing(home: Path, resident: Resident, tmp_path: Path, signal_number: int) -> None:
    whole = run_sweep(sweep(home), store=tmp_path / "whole", resident=resident)
    config = sweep(home)
    study = open_study(config, config.folder(tmp_path / "cut"))
    with slow_worker(config, tmp_path / "cut") as worker:
        wait_for(lambda: len(study.get_trials(False)) >= 4 and study.get_trials(False)[3].user_attrs.get("process"))
        worker.send_signal(signal_number)
        worker.wait()
    result = run_sweep(config, store=tmp_path / "cut", resident=resident)
    assert [row.state for row in result.rows].count("failed") == 1
    assert [(p, plan) for p, plan, _ in drawn(result.rows)] == [(p, plan) for p, plan, _ in drawn(whole.rows)]


@pytest.mark.e2e
def test_several_workers_share_one_study(home: Path, tmp_path: Path) -> None:
    told: list[int] = []
    result = run_sweep(sweep(home, jobs=2, trials=12), store=tmp_path, progress=lambda row: told.append(row.number))
    assert result.count("complete") >= 12 and sorted(told) == [row.number for row in result.rows]
    assert {trial.state for trial in result.rows} <= {"complete", "refused"}
    distinct = {json.dumps(row.parameters, sort_keys=True) for row in result.rows}
    assert len(distinct) == len(result.rows), "two workers drew the same trial"


@pytest.mark.e2e
def test_workers_that_cannot_start_are_reported(home: Path, tmp_path: Path) -> None:
    config = sweep(home, jobs=2, model=str(tmp_path / "absent"))
    with pytest.raises(EvaluationError, match=r"2 of 2 workers failed.*absent"):
        run_sweep(config, store=tmp_path)
