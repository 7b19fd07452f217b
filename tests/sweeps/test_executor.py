"""An executor of another distribution runs a grid and a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import sweeps.opening
from bench.records.record import read_records
from methods.framework.errors import ConfigError
from sweeps.executor import parse_executor
from sweeps.grid import run_grid
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import load_sweep
from tests.support.distribution import install
from tests.support.tiny_grids import grid
from tests.support.tiny_sweeps import drawn, sweep

THREADS = '''
"""Workers as threads of this process, and a file that tells who was started."""

import importlib
import threading
from pathlib import Path
from typing import Literal

from sweeps.executor import Executor


class Part(Executor):
    name: Literal["threads"] = "threads"
    notes: Path

    @property
    def host(self):
        return "localhost"

    def submit(self, workers):
        with self.notes.open("a") as file:
            file.writelines(f"{worker.module} {worker.number} of {worker.count}\\n" for worker in workers)
        return [Thread(worker) for worker in workers]


class Thread:
    def __init__(self, worker):
        self.code = None
        self.thread = threading.Thread(target=self.run, args=(worker,))
        self.thread.start()

    def run(self, worker):
        self.code = importlib.import_module(worker.module).main(worker.arguments)

    def poll(self):
        return self.code

    def interrupt(self):
        pass

    def kill(self):
        pass
'''


@pytest.fixture
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    install(tmp_path, monkeypatch, "moebench.executors", "threads", THREADS)
    return {"name": "threads", "notes": str(tmp_path / "notes")}


def test_it_runs_a_sweep(
    home: Path, resident: Resident, whole: SweepResult, executor: dict[str, Any], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(sweeps.opening, "open_resident", lambda *_: resident)
    config = sweep(home, executor=executor)
    assert config.identity() == sweep(home).identity(), "a study does not depend on where it runs"
    result = run_sweep(config, store=tmp_path)
    assert (tmp_path / "notes").read_text() == "sweeps.worker 0 of 1\n"
    assert drawn(result.rows) == drawn(whole.rows)
    assert load_sweep(config.folder(tmp_path) / "config.json") == config


def test_it_runs_a_grid(home: Path, executor: dict[str, Any], tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    config = grid(
        tmp_path,
        models=[str(home / "model")],
        methods=["weight_norm"],
        keeps=[0.5],
        evaluation={"tasks": []},
        executor=executor,
        threads=threads,
    )
    result = run_grid(config, track="disabled")
    assert result.counts == {"complete": 2}, result.problems
    assert (tmp_path / "notes").read_text() == "sweeps.grid_worker 0 of 1\n", "one worker measures the base, too"
    records = {record.id: record for record in read_records(result.records)}
    assert {outcome.id for outcome in result.outcomes} == set(records)
    assert {record.method for record in records.values()} == {None, "weight_norm"}
    again = run_grid(config, track="disabled")
    assert again.outcomes == result.outcomes and len(list(result.records.iterdir())) == 2


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("nothing", "Part = None", "entry point another_nothing:Part of moebench.executors should hold a subclass"),
        (
            "other",
            "from sweeps.executors.local import Local as Part",
            r"should hold a subclass of sweeps\.executor\.Executor with name 'other'",
        ),
    ],
)
def test_what_is_no_executor_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: str, told: str
) -> None:
    install(tmp_path, monkeypatch, "moebench.executors", name, code)
    with pytest.raises(ConfigError, match=told):
        parse_executor(name)
