"""From a study to ordinary runs: which plans, in which order, and with whose settings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from bench.pocket import TASKS
from bench.records.mirror import Tracker
from bench.records.record import Record
from bench.running.run import Run
from bench.settings.stage_settings import CalibrationConfig
from bench.store.store import Store
from methods.framework.errors import ConfigError, RecordError, UnknownNameError
from sweeps.outcome import MOST_KEPT, SweepResult
from sweeps.promoted_runs import MOST, best_plans, promoted_run, study_folder
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig, parse_sweep
from sweeps.workers import write_config
from tests.support.tiny_sweeps import objectives, sweep

QUICK: dict[str, Any] = {"timing": {"enabled": False}}


@pytest.fixture(scope="module")
def config(home: Path) -> SweepConfig:
    both = objectives(home, "nll", "size")
    return sweep(home, name="pair", budget=None, objectives=both, sampler={"name": "random", "seed": 3}, trials=8)


@pytest.fixture(scope="module")
def pair(config: SweepConfig, resident: Resident, tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    """A study with a front of several plans, alone in its store."""
    return run_sweep(config, store=tmp_path_factory.mktemp("pair"), resident=resident)


def store_of(result: SweepResult) -> Path:
    return result.folder.parent.parent


def test_the_front_is_taken_the_best_first(config: SweepConfig, pair: SweepResult) -> None:
    by_loss = sorted(pair.front, key=lambda row: row.scores["nll"])
    assert len(by_loss) > 2
    plans = promoted_run("pair", store_of(pair)).plans
    assert [json.loads(path.read_text())["provenance"]["trial"] for path in plans] == [row.number for row in by_loss]
    assert promoted_run("pair", store_of(pair), top=2).plans == plans[:2]
    assert promoted_run(str(pair.folder), store_of(pair) / "elsewhere").plans == plans, "by its folder"


def test_of_a_long_front_so_many_are_taken_as_was_said(config: SweepConfig, tmp_path: Path) -> None:
    listed = [
        {"trial": n, "scores": {"nll": 1.0, "bytes_kept": n % 5}, "file": f"front/{n}.json"} for n in range(MOST + 3)
    ]
    (tmp_path / "front.json").write_text(json.dumps({"front": listed}))
    assert [int(path.stem) for path in best_plans(config, tmp_path)] == [0, 5, 10, 1, 6, 2, 7, 3]
    assert len(best_plans(config, tmp_path, MOST + 2)) == MOST + 2
    upward = parse_sweep(
        {**config.model_dump(mode="json"), "objectives": [{"kind": "task", "task": "a"}], "allow_test_objective": True}
    )
    scores = {upward.labels[0]: 0.5}
    listed = [{"trial": n, "scores": {name: n for name in scores}, "file": f"front/{n}.json"} for n in range(3)]
    (tmp_path / "front.json").write_text(json.dumps({"front": listed}))
    assert [int(path.stem) for path in best_plans(upward, tmp_path)] == [2, 1, 0], "more is better"


def test_of_one_objective_the_best_trials_are_taken(home: Path, whole: SweepResult, tmp_path: Path) -> None:
    by_loss = sorted(
        (row for row in whole.rows if row.state == "complete" and row.same_as is None),
        key=lambda row: row.scores["nll"],
    )
    plans = promoted_run("s", home / "whole", top=3).plans
    found = [json.loads(path.read_text())["provenance"] for path in plans]
    assert [one["trial"] for one in found] == [row.number for row in by_loss[:3]]
    assert [one["scores"] for one in found] == [row.scores for row in by_loss[:3]]
    alone = promoted_run("s", home / "whole").plans
    assert [path.name for path in alone] == [plans[0].name], "the best one where no number is given"
    assert len(promoted_run("s", home / "whole", top=99).plans) == len(by_loss) < MOST_KEPT
    config = sweep(home)
    listed = [{"trial": n, "scores": {"nll": n}, "file": f"best/{n}.json"} for n in range(MOST_KEPT)]
    (tmp_path / "best.json").write_text(json.dumps({"best": listed}))
    assert len(best_plans(config, tmp_path, MOST_KEPT)) == MOST_KEPT
    with pytest.raises(ConfigError, match=rf"keeps the plans of its {MOST_KEPT} best trials.*top: 40"):
        best_plans(config, tmp_path, 40)
    with pytest.raises(RecordError, match=r"cannot read .*best\.json.*moebench sweep FILE"):
        best_plans(config, tmp_path / "older", 2)


def test_as_many_of_the_best_are_kept_as_the_file_promotes(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sweeps.outcome.MOST_KEPT", 2)
    shutil.copytree(home / "whole", tmp_path / "store")
    assert len(run_sweep(sweep(home), store=tmp_path / "store", resident=resident).best) == 2
    assert len(list((tmp_path / "store/sweeps/s/best").iterdir())) == 2, "the others are gone"
    asked = sweep(home, promote={"top": 4})
    assert len(run_sweep(asked, store=tmp_path / "store", resident=resident).best) == 4
    assert len(promoted_run("s", tmp_path / "store").plans) == 4


def test_model_text_and_group_are_those_of_the_study(config: SweepConfig, pair: SweepResult, tmp_path: Path) -> None:
    run = promoted_run("pair", store_of(pair), given={"evaluation": {"limit": 3}, **QUICK})
    assert (run.model, run.group, run.methods, run.timing.enabled) == (config.model, "pair", (), False)
    assert run.calibration == config.calibration
    assert (run.evaluation.tasks, run.evaluation.limit) == ((), 3)
    other = config.model_copy(update={"name": "other", "device": "cpu", "dtype": "bfloat16", "report": ("boolq",)})
    shutil.copytree(pair.folder, other.folder(tmp_path))
    write_config(other, tmp_path)
    run = promoted_run("other", tmp_path)
    assert (run.calibration.device, run.evaluation.device, run.evaluation.dtype) == ("cpu", "cpu", "bfloat16")
    assert run.evaluation.tasks == ("boolq",) and run.timing.enabled
    given = {"evaluation": {"tasks": ["piqa"], "dtype": "float32"}, "calibration": {"device": "auto"}}
    run = promoted_run("other", tmp_path, given=given, plans=[tmp_path / "a.json"])
    assert (run.evaluation.tasks, run.evaluation.dtype, run.evaluation.device) == (("piqa",), "float32", "cpu")
    assert (run.plans, run.calibration.device) == ((tmp_path / "a.json",), "auto")


def test_the_file_of_the_sweep_says_how_its_front_is_run(home: Path, pair: SweepResult, tmp_path: Path) -> None:
    promote = {"top": 2, "evaluation": {"tasks": ["pocket"], "limit": 5}, "timing": {"enabled": False}}
    config = sweep(home, name="pair", objectives=objectives(home, "nll", "size"), report=["boolq"], promote=promote)
    assert config.promote is not None and config.promote.evaluation.tasks == ("pocket",)
    assert "promote" not in config.identity()
    silent = sweep(home, report=["boolq"], dtype="bfloat16", promote={})
    assert silent.promote is not None
    assert (silent.promote.evaluation.tasks, silent.promote.evaluation.dtype) == (("boolq",), "bfloat16")
    shutil.copytree(pair.folder, config.folder(tmp_path))
    write_config(config, tmp_path)
    run = promoted_run("pair", tmp_path)
    assert (len(run.plans), run.evaluation.tasks, run.evaluation.limit) == (2, TASKS, 5)
    assert not run.timing.enabled and len(promoted_run("pair", tmp_path, top=1).plans) == 1
    with pytest.raises(ConfigError, match=r"promote\.evaluation: unknown key 'task'.*'tasks'"):
        sweep(home, promote={"evaluation": {"task": ["pocket"]}})
    with pytest.raises(ConfigError, match=r"promote\.top: .*found 0"):
        sweep(home, promote={"top": 0})


def test_paths_of_the_promotion_are_looked_for_beside_the_file(home: Path, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    document = sweep(home).model_dump(mode="json") | {"promote": {"evaluation": {"include_path": "tasks"}}}
    beside = parse_sweep(document, folder=tmp_path).promote
    assert beside is not None and beside.evaluation.include_path == tmp_path / "tasks"


def test_what_was_an_objective_is_not_reported(home: Path, pair: SweepResult, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: mine_dev\n")
    config = sweep(
        home,
        name="pair",
        objectives=[{"kind": "task", "task": "mine_dev"}, *objectives(home, "size")],
        include_path=str(tmp_path),
    )
    shutil.copytree(pair.folder, config.folder(tmp_path))
    path = write_config(config, tmp_path).parent / "front.json"
    label = config.labels[0]
    path.write_text(
        json.dumps({"front": [{"trial": 0, "scores": {label: 1, "bytes_kept": 1}, "file": "front/a.json"}]})
    )
    assert promoted_run("pair", tmp_path).plans == (path.parent / "front/a.json",)
    with pytest.raises(ConfigError, match=r"mine_dev' is a test set \(`promote` scores it\)"):
        promoted_run("pair", tmp_path, given={"evaluation": {"tasks": ["mine_dev"]}})


def test_what_is_no_study_is_refused(home: Path, config: SweepConfig, pair: SweepResult, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown sweep 'pear'; did you mean 'pair'"):
        study_folder("pear", store_of(pair))
    (tmp_path / "sweeps" / "old").mkdir(parents=True)
    with pytest.raises(ConfigError, match=r"old holds no config\.json.*moebench sweep FILE"):
        study_folder("old", tmp_path)
    for text, message in (
        (None, "cannot read .*front"),
        ("[]", "front"),
        ('{"front": [{"trial": 1}]}', r"not the front of pair \(KeyError: 'scores'\)"),
        ('{"front": 1}', "not the front of pair"),
    ):
        if text is not None:
            (tmp_path / "front.json").write_text(text)
        with pytest.raises(RecordError, match=message) as caught:
            best_plans(config, tmp_path)
        assert "moebench sweep FILE" in str(caught.value)
    (tmp_path / "front.json").write_text('{"front": []}')
    with pytest.raises(ConfigError, match="no complete trial yet"):
        best_plans(config, tmp_path)


def promoted(store: Path, **options: Any) -> list[Record]:
    config = promoted_run("pair", store, given=QUICK, **options)
    with Tracker("disabled", folder=store) as tracker:
        return Run(config, Store(store), tracker).execute()


def test_promoted_plans_are_rows_that_tell_who_found_them(pair: SweepResult) -> None:
    base, *runs = promoted(store_of(pair))
    rows = sorted(pair.front, key=lambda row: row.scores["nll"])
    assert base.method is None and [run.plan for run in runs] == [row.plan for row in rows]
    for run, row in zip(runs, rows, strict=True):
        assert run.status == "complete" and run.group == "pair" and run.cost is not None and run.found_by is not None
        assert (run.found_by.study, run.found_by.trial, run.found_by.budget) == ("pair", row.number, {})
        assert run.found_by.scores == row.scores and run.cost.bytes == row.sizes["bytes"]
        assert run.title == f"Criterion (b, alpha, beta) (sweep pair, trial {row.number})" and run.knobs == dict(
            row.knobs
        )
    assert promoted(store_of(pair), top=1) == [base, runs[0]], "what is there already is not run again"


def test_the_budget_is_told(whole: SweepResult, home: Path) -> None:
    (path,) = (whole.folder / "front").glob("*.json")
    assert json.loads(path.read_text())["provenance"]["budget"] == {"experts": 0.5}
    assert promoted_run("s", home / "whole").calibration == CalibrationConfig(
        corpus=str(home / "calibration.json"), sequences=8, length=16
    )
