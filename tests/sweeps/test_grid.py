"""A grid: what it expands to, that it goes on where it stopped, and that no run's failure stops another."""

from __future__ import annotations

import os
from collections import Counter
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from bench.pocket import DOMAINS, TASKS, write_tasks
from bench.records.mirror import Tracker
from bench.records.record import read_records
from bench.settings.strict import validated
from methods.framework.errors import ConfigError
from sweeps.grid import Outcome, Progress, execute, run_grid
from sweeps.grid_config import GridConfig, Job, jobs, load_grid
from sweeps.grid_terminal import summary
from tests.support.places import ROOT

GRIDS = ROOT / "sweeps" / "grids"


def grid(folder: Path, **changes: Any) -> GridConfig:
    document: dict[str, Any] = {
        "models": ["pocket-mixtral"],
        "methods": ["random", "weight_norm", "frequency"],
        "keeps": [0.75, 0.5],
        "calibration": {"corpora": ["pocket", "pocket:facts"], "seeds": [0, 1, 2], "sequences": 8, "length": 64},
        "evaluation": {"tasks": ["pocket_facts"], "include_path": str(folder), "limit": 4},
        "store": str(folder / "store"),
        **changes,
    }
    return validated(document, GridConfig, "test")


def test_expansion_runs_nothing_twice(tmp_path: Path) -> None:
    found = jobs(grid(tmp_path, models=["a", "b"]), tmp_path)
    assert [job.config.model for job in found if job.base] == ["a", "b"] == [job.config.model for job in found[:2]]
    ran = Counter(
        (method.name, method.knobs.get("seed"), method.knobs["keep"], job.config.calibration.corpus)
        for job in found
        if job.config.model == "a"
        for method in job.config.methods
    )
    wanted = [("random", seed, keep, "pocket") for seed in (0, 1, 2) for keep in (0.75, 0.5)]
    wanted += [("weight_norm", None, keep, "pocket") for keep in (0.75, 0.5)]
    wanted += [("frequency", None, keep, text) for keep in (0.75, 0.5) for text in ("pocket", "pocket:facts")] * 3
    assert ran == Counter(wanted)
    assert all(
        method.knobs["seed"] == job.config.calibration.seed
        for job in found
        for method in job.config.methods
        if method.name == "random"
    )


def test_a_stated_seed_and_a_stated_keep_stay(tmp_path: Path) -> None:
    found = jobs(grid(tmp_path, methods=["random:seed=7,keep=0.3"]), tmp_path)
    assert [[method.knobs for method in job.config.methods] for job in found] == [[], [{"seed": 7, "keep": 0.3}]]


def test_pocket_stands_for_all_pocket_tasks(tmp_path: Path) -> None:
    evaluation = jobs(grid(tmp_path, evaluation={"tasks": ["pocket"]}), tmp_path)[0].config.evaluation
    assert evaluation.tasks == TASKS
    assert evaluation.include_path is not None and evaluation.include_path.is_dir()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"methodes": []}, "did you mean 'methods'"),
        ({"keeps": [0.5, 0.5]}, "keeps states a value twice: 0.5, 0.5"),
        ({"keeps": [1.5]}, "less than or equal to 1"),
        ({"timing": {"enabled": True}, "workers": 2}, "allowed: workers: 1"),
        ({"calibration": {"seeds": []}}, "seeds"),
        ({"methods": ["random:seed"]}, "not of the form knob=value"),
    ],
)
def test_bad_settings_are_named(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        grid(tmp_path, **changes)


def test_an_unknown_method_is_named_before_any_work(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    file.write_text("models: [pocket-mixtral]\nmethods: [frequencie]\n")
    with pytest.raises(ConfigError, match="did you mean 'frequency'"):
        load_grid(file)


def test_presets_load_and_share_their_runs() -> None:
    study, domains = (load_grid(GRIDS / f"{name}.yaml") for name in ("expert-selection", "expert-selection-domains"))
    assert (study.group, study.store, study.evaluation) == (domains.group, domains.store, domains.evaluation)
    assert study.calibration.seeds == domains.calibration.seeds and len(study.calibration.seeds) == 3
    assert set(domains.calibration.corpora) == {"pocket", *(f"pocket:{name}" for name in DOMAINS)}
    assert {method.name for method in domains.methods} <= {method.name for method in study.methods}


def answer(pipe: Connection, job: Job, status: str = "complete") -> None:
    names = [method.name for method in job.config.methods] or ["base"]
    pipe.send(("begun", ("", 1)))
    pipe.send(("done", [Outcome(job.config.model, name, status) for name in names]))


def dies_of_frequency(pipe: Connection, store: Path, track: str | None, threads: int) -> None:
    """A process that is gone at once when a job holds ``frequency``, and stumbles over ``weight_norm``."""
    while (job := pipe.recv()) is not None:
        names = {method.name for method in job.config.methods}
        if "frequency" in names:
            os._exit(3)
        if "weight_norm" in names:
            pipe.send(("crashed", "ValueError at somewhere.py:1: no"))
        else:
            answer(pipe, job)


def has_no_base(pipe: Connection, store: Path, track: str | None, threads: int) -> None:
    while (job := pipe.recv()) is not None:
        assert job.base
        pipe.send(("failed", "the disk is full"))


def tells_its_threads(pipe: Connection, store: Path, track: str | None, threads: int) -> None:
    while (job := pipe.recv()) is not None:
        answer(pipe, job, os.environ["OMP_NUM_THREADS"])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_dying_process_costs_only_the_method_it_was_at(tmp_path: Path, workers: int) -> None:
    calibration = {"corpora": ["pocket"], "seeds": [0]}
    config = grid(tmp_path, workers=workers, keeps=[0.5], calibration=calibration)
    seen: list[tuple[int, int]] = []

    def told(progress: Progress) -> None:
        seen.append((progress.begun, progress.total))

    result = run_grid(config, told=told, work=dies_of_frequency)
    ended = {outcome.method: (outcome.status, outcome.reason) for outcome in result.outcomes}
    assert len(result.outcomes) == 4
    assert ended == {
        "base": ("complete", ""),
        "random": ("complete", ""),
        "frequency": ("failed", "its process ended with exit code 3"),
        "weight_norm": ("failed", "ValueError at somewhere.py:1: no"),
    }
    assert seen[-1] == (4, 4)
    assert summary(result)[-1].startswith("2 complete, 2 failed")  # type: ignore[union-attr]  # the last line is text


def test_nothing_is_run_without_a_base(tmp_path: Path) -> None:
    result = run_grid(grid(tmp_path, keeps=[0.5]), work=has_no_base)
    assert result.counts == {"failed": 1, "cancelled": 3 + 1 + 6}
    assert all("the disk is full" in outcome.reason for outcome in result.outcomes)


def test_threads_are_set_before_libraries_load(tmp_path: Path) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    result = run_grid(grid(tmp_path, methods=["weight_norm"], threads=3), work=tells_its_threads)
    assert set(result.counts) == {"3"}
    assert os.environ.get("OMP_NUM_THREADS") == before


class Pipe:
    def __init__(self) -> None:
        self.sent: list[Any] = []

    def send(self, message: Any) -> None:
        self.sent.append(message)


def test_methods_that_decide_the_same_are_evaluated_once(tmp_path: Path) -> None:
    folder = write_tasks(tmp_path / "tasks", items=4)
    config = grid(
        folder,
        methods=["frequency", "reap"],
        keeps=[1.0],
        calibration={"seeds": [0, 1], "sequences": 4, "length": 32},
        store=str(tmp_path),
    )
    pipe = Pipe()
    with Tracker("disabled", folder=tmp_path) as tracker:
        ended = [execute(job, tmp_path, tracker, pipe) for job in jobs(config, tmp_path)]  # type: ignore[arg-type]  # it sends
        again = [execute(job, tmp_path, tracker, pipe) for job in jobs(config, tmp_path)]  # type: ignore[arg-type]  # as above
    assert ended == again, "the second time reads what the first one wrote"
    assert [[(one.method, one.status) for one in job] for job in ended] == [
        [("base", "complete")],
        *[[("frequency", "complete"), ("reap", "complete")]] * 2,
    ]
    records = list(read_records(tmp_path / "records"))
    assert len(records) == 5
    assert len({record.plan for record in records}) == 1
    contents = len(list((tmp_path / "cache" / "scores").iterdir()))
    assert contents <= 2, "one for the source and one for its copy: four decisions, one evaluation"
