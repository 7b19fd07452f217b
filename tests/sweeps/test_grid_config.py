"""The settings of a grid, and what they expand to."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from bench.pocket import DOMAINS, TASKS
from methods.framework.errors import ConfigError
from sweeps.executors.local import Local
from sweeps.grid_config import Job, jobs, load_grid
from tests.support.places import ROOT
from tests.support.tiny_grids import grid

GRIDS = ROOT / "sweeps" / "grids"


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
        ({"keeps": [1.5]}, "keeps.0: should be at most 1, found 1.5"),
        ({"timing": {"enabled": True}, "workers": 2}, "allowed: workers: 1"),
        ({"calibration": {"seeds": []}}, "seeds"),
        ({"methods": ["random:seed"]}, "not of the form knob=value"),
        ({"executor": "locla"}, "unknown executor 'locla'; did you mean 'local'"),
        ({"executor": {"name": "local", "cores": 3}}, "executor.*unknown key 'cores'"),
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


@pytest.mark.parametrize("file", sorted(GRIDS.glob("*.yaml")), ids=lambda file: file.stem)
def test_jobs_of_presets_reach_a_worker_unchanged(file: Path, tmp_path: Path) -> None:
    for job in jobs(load_grid(file), tmp_path):
        received = Job.of(json.loads(json.dumps(job.document())))
        assert received == job
        assert received.config.model_dump_json() == job.config.model_dump_json()
        for sent, got in zip(job.config.methods, received.config.methods, strict=True):
            assert sent.configured() == got.configured()


def test_knots_of_a_share_reach_a_worker(tmp_path: Path) -> None:
    job = jobs(grid(tmp_path, methods=["reap:keep=0.3/0.8"]), tmp_path)[1]
    received = Job.of(json.loads(json.dumps(job.document())))
    assert received.config.methods[0].configured() == job.config.methods[0].configured()
    assert received.config.methods[0].configured().keep == (0.3, 0.8)


def test_the_executor_may_be_named(tmp_path: Path) -> None:
    assert grid(tmp_path).executor == grid(tmp_path, executor="local").executor == Local()
    assert grid(tmp_path, executor={"name": "local"}).executor == Local()
