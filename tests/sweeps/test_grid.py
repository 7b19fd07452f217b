"""A grid: no run's failure stops another, and nothing is left behind."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import psutil
import pytest

from methods.framework.errors import EvaluationError
from sweeps.grid import run_grid
from sweeps.grid_config import jobs
from sweeps.grid_messages import Line, Switchboard
from sweeps.grid_progress import Progress
from sweeps.grid_terminal import summary
from tests.support.grid_fakes import Fakes, Restarting
from tests.support.tiny_grids import grid


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dying_process_costs_only_the_method_it_was_at(tmp_path: Path, workers: int) -> None:
    calibration = {"corpora": ["pocket"], "seeds": [0]}
    config = grid(tmp_path, workers=workers, keeps=[0.5], calibration=calibration)
    seen: list[tuple[int, int]] = []

    steps: list[tuple[str, str]] = []

    def told(progress: Progress) -> None:
        seen.append((progress.begun, progress.total))
        steps.extend((step.row, step.stage) for step in progress.steps)
        progress.steps.clear()

    executor = Fakes.of("dies_of_frequency")
    result = run_grid(config, told=told, executor=executor)
    ended = {outcome.method: (outcome.status, outcome.reason) for outcome in result.outcomes}
    assert len(result.outcomes) == 4
    assert ended == {
        "base": ("complete", ""),
        "random": ("complete", ""),
        "frequency": ("failed", "its process ended with exit code 3"),
        "weight_norm": ("failed", "ValueError at somewhere.py:1: no"),
    }
    assert seen[-1] == (4, 4)
    _, whole = jobs(config, tmp_path)
    names = dict(zip(whole.rows, ("random", "weight_norm", "frequency"), strict=True))
    told_of = [(names[row], stage) for row, stage in steps if row in names]
    assert {name for name, stage in told_of if stage == "waiting"} == set(names.values()), "the job is begun again"
    assert {name for name, stage in told_of if stage == "failed"} == {"frequency", "weight_norm"}
    last = summary(result)[-1]
    assert isinstance(last, str)
    assert last.startswith("2 complete, 2 failed") and last.endswith(f"Logs of the processes: {result.logs}")
    assert not (result.logs / "address.json").exists()
    assert {worker.number for worker in executor.started} == set(range(workers))
    assert len({worker.log for worker in executor.started}) == len(executor.started) >= 2


def test_a_worker_that_is_started_again_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sweeps.grid_pool._END", 0.5)
    config = grid(tmp_path, keeps=[0.5], calibration={"corpora": ["pocket"], "seeds": [0]})
    executor = Restarting.of("dies_of_frequency")
    result = run_grid(config, executor=executor)
    ended = {outcome.method: (outcome.status, outcome.reason) for outcome in result.outcomes}
    assert (ended["base"], ended["random"]) == (("complete", ""), ("complete", ""))
    assert ended["frequency"] == ("failed", "its process ended with exit code 3"), "not that it was started again"
    first, again, *_ = executor.started
    assert (again.arguments, again.log) == (first.arguments, first.log), "the same worker"


def test_only_the_last_line_of_a_worker_tells_that_it_is_gone(address: Path) -> None:
    with Switchboard("localhost") as board:
        board.write_address(address, store="s")
        known = json.loads(address.read_text())
        with Line(known, 7) as first:
            assert board.next(10) == (7, {"kind": "ready"})
            with Line(known, 7) as second:
                assert board.next(10) == (7, {"kind": "ready"})
                first.__exit__(None, None, None)
                assert board.next(0.5) is None
                board.tell(7, {"a": 1})
                assert second.job() == {"a": 1}
            assert board.next(10) == (7, None)


def test_nothing_is_run_without_a_base(tmp_path: Path) -> None:
    result = run_grid(grid(tmp_path, keeps=[0.5]), executor=Fakes.of("has_no_base"))
    assert result.counts == {"failed": 1, "cancelled": 3 + 1 + 6}
    assert all("the disk is full" in outcome.reason for outcome in result.outcomes)


def test_one_process_serves_all_and_leaves_nothing(tmp_path: Path) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    executor = Fakes.of("tells_its_threads")
    result = run_grid(grid(tmp_path, methods=["weight_norm"], threads=3), executor=executor)
    assert set(result.counts) == {"3"}, "threads are set before libraries load"
    assert os.environ.get("OMP_NUM_THREADS") == before
    assert len(executor.started) == 1
    assert not result.logs.exists() and not psutil.Process().children()


def test_processes_that_cannot_start_are_reported(tmp_path: Path) -> None:
    executor = Fakes.of("cannot_start")
    with pytest.raises(EvaluationError, match=r"3 processes .*exit code 1: ImportError: no such thing\. Logs: "):
        run_grid(grid(tmp_path), executor=executor)
    assert len(executor.started) == 3


def test_ctrl_c_ends_the_processes(tmp_path: Path) -> None:
    def told(progress: Progress) -> None:
        if progress.begun:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_grid(grid(tmp_path), told=told, executor=Fakes.of("waits"))
    assert not psutil.Process().children()


@pytest.fixture
def address(tmp_path: Path) -> Path:
    return tmp_path / "address.json"


def test_only_who_knows_the_password_is_heard(address: Path) -> None:
    with Switchboard("localhost") as board:
        board.write_address(address, store="s")
        known = json.loads(address.read_text())
        with socket.create_connection((known["host"], known["port"])) as stranger:
            stranger.settimeout(60)
            stranger.sendall(b"GET / HTTP/1.1\n")
            assert stranger.recv(1) == b"", "who speaks otherwise is hung up on"
        with Line({**known, "password": "x"}, 0) as guess:
            assert board.next(0.2) is None, "a wrong password reports nothing"
            assert guess.job() is None
        with Line(known, 7) as line:
            line.tell(kind="begun", count=1)
            heard = [board.next(10), board.next(10)]
            assert heard == [(7, {"kind": "ready"}), (7, {"kind": "begun", "count": 1})]
            board.tell(7, {"base": True})
            assert line.job() == {"base": True}
        assert board.next(10) == (7, None)
        assert board.next(0.05) is None
