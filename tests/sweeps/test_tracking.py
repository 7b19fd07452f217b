"""A study in W&B: what the run holds, read back from the offline file, and that a study that went on stays one run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import optuna
import pytest

from bench.records.mirror import Tracker
from sweeps.journal import open_study
from sweeps.outcome import SweepResult, TrialRow
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from sweeps.tracking import configured, history, plots, study_id, summary, track_study
from tests.bench.records.test_mirror import entries
from tests.support.tiny_sweeps import objectives, sweep

ROWS = (
    TrialRow(0, "complete", scores={"nll": 3.0, "acc": 0.1}, sizes={"bytes": 7}, seconds=1.0),
    TrialRow(1, "refused", reason="too large"),
    TrialRow(2, "complete", scores={"nll": 2.0, "acc": 0.4}, sizes={"bytes": 5}, seconds=2.0),
    TrialRow(3, "complete", scores={"nll": 2.5, "acc": 0.3}, sizes={"bytes": 5}, seconds=0.5),
)
DIRECTIONS = {"nll": "minimize", "acc": "maximize"}


def test_history_keeps_the_best_so_far() -> None:
    found = list(history(ROWS, DIRECTIONS))
    assert [number for number, _ in found] == [0, 2, 3]
    assert [(told["best/nll"], told["best/acc"]) for _, told in found] == [(3.0, 0.1), (2.0, 0.4), (2.0, 0.4)]
    assert found[2][1] == {
        "trial": 3,
        "score/nll": 2.5,
        "score/acc": 0.3,
        "best/nll": 2.0,
        "best/acc": 0.4,
        "size/bytes": 5,
        "seconds": 0.5,
    }


def test_the_summary_counts_trials() -> None:
    told = summary(SweepResult("s", Path("s"), ROWS, ROWS[2:3]), DIRECTIONS)
    assert (told["trials/complete"], told["trials/refused"], told["trials/failed"]) == (3, 1, 0)
    assert (told["seconds"], told["front"], told["best/nll"], told["best/acc"]) == (3.5, 1, 2.0, 0.4)


def test_the_id_follows_from_name_and_identity(home: Path) -> None:
    ids = [
        study_id(config)
        for config in (
            sweep(home),
            sweep(home, name="t"),
            sweep(home, sampler={"seed": 1}),
            sweep(home, trials=99, jobs=2, promote={"top": 1}),
        )
    ]
    assert len(set(ids[:3])) == 3 and ids[3] == ids[0]


def test_settings_tell_no_folder_of_this_machine(home: Path) -> None:
    told = configured(sweep(home, include_path=str(home)))
    assert (told["model"], told["include_path"], told["trials"]) == ("model", home.name, 6)


def study_of(*trials: tuple[dict[str, float], float]) -> optuna.Study:
    study = optuna.create_study()
    for params, value in trials:
        spaces: dict[str, Any] = {name: optuna.distributions.FloatDistribution(0, 1) for name in params}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
    return study


def test_plots_are_drawn_or_their_absence_has_a_reason() -> None:
    drawn = plots(study_of(*(({"a": n / 8, "b": (n * 3 % 8) / 8}, n / 8) for n in range(8))), ["nll"])
    assert set(drawn.figures) == {"history/nll", "importance/nll", "slice/nll"} and drawn.skipped == {}
    assert drawn.importance["nll/a"] > 0.8 and sum(drawn.importance.values()) == pytest.approx(1)
    equal = plots(study_of(({"a": 0.25}, 1.0), ({"a": 0.5}, 1.0)), ["nll"])
    assert set(equal.figures) == {"history/nll", "slice/nll"} and equal.importance == {}
    assert list(equal.skipped) == ["importance/nll"] and "zero total variance" in equal.skipped["importance/nll"]
    assert plots(study_of(), ["nll"]).skipped == {"plots": "no trial is complete"}


def test_what_optuna_leaves_out_is_not_shouted(capsys: pytest.CaptureFixture[str]) -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plots(study_of(({"a": 0.25}, math.inf), ({"a": 0.5}, math.inf)), ["nll"])
    assert capsys.readouterr().err == "" and optuna.logging.get_verbosity() == optuna.logging.WARNING


def test_slices_are_those_that_matter_most() -> None:
    names = [f"p{n:02d}" for n in range(15)]
    values = [({name: (n * (place + 2) % 11) / 11 for place, name in enumerate(names)}, n) for n in range(11)]
    drawn = plots(study_of(*((params, params["p14"]) for params, _ in values)), ["nll"])
    shown = [axis.title.text for axis in drawn.figures["slice/nll"].select_xaxes()]
    assert len(shown) == 12 and "p14" in shown


@pytest.fixture
def config(home: Path) -> SweepConfig:
    return sweep(home, name="pair", budget=None, objectives=objectives(home, "nll", "size"), sampler={"name": "random"})


@pytest.mark.e2e
def test_a_study_is_one_offline_run(config: SweepConfig, resident: Resident, tmp_path: Path) -> None:
    def tracked(trials: int) -> tuple[SweepResult, Path | None]:
        longer = config.model_copy(update={"trials": trials})
        result = run_sweep(longer, store=tmp_path, resident=resident)
        with Tracker("offline", folder=tmp_path) as tracker:
            return result, track_study(longer, result, tmp_path, tracker)

    _, first = tracked(3)
    assert first is not None and tracked(3)[1] is None, "nothing new"
    result, folder = tracked(6)
    assert folder is not None and list((tmp_path / "wandb").glob("offline-run-*")) == [folder], "the longer one remains"

    found = entries(folder)
    run = next(entry.run for entry in found if entry.HasField("run"))
    assert (run.run_id, run.run_group, run.job_type) == (study_id(config), "pair", "sweep")
    told = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert told["method"] == "criterion" and told["model"] == "model"
    steps = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
        for entry in found
        if entry.HasField("history")
    ]
    losses = [row.scores["nll"] for row in result.rows if row.state == "complete"]
    assert [step["score/nll"] for step in steps if "score/nll" in step] == losses
    assert [step["best/nll"] for step in steps if "best/nll" in step] == [min(losses[: n + 1]) for n in range(6)]
    numbers: dict[str, Any] = {}
    for entry in found:
        for item in entry.summary.update if entry.HasField("summary") else ():
            numbers[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert numbers["best/nll"] == min(losses) and numbers["trials/complete"] == 6
    assert any(name.startswith("importance/nll/") for name in numbers)

    (table,) = (folder / "files").rglob("*.table.json")
    lines = json.loads(table.read_text())
    at = lines["columns"].index("score.nll")
    assert [line[at] for line in lines["data"]] == [row.scores.get("nll") for row in result.rows]
    assert {"trial", "state", "size.bytes", "seconds"} <= set(lines["columns"])
    drawn = {path.name.split("_")[0] for path in (folder / "files").rglob("*.plotly.json")}
    assert drawn and all("data" in json.loads(path.read_text()) for path in (folder / "files").rglob("*.plotly.json"))
    names = {path.name for path in (folder / "files" / "front").iterdir()}
    assert names == {f"{str(row.plan)[:16]}.json" for row in result.front}
    artifacts = [entry.request.log_artifact.artifact for entry in found if entry.request.HasField("log_artifact")]
    artifacts += [entry.artifact for entry in found if entry.HasField("artifact")]
    assert f"front-{study_id(config)}" in {one.name for one in artifacts if one.type == "front"}
    everything = b"".join(entry.SerializeToString() for entry in found if entry.HasField("run"))
    assert str(tmp_path).encode() not in everything and str(config.model).encode() not in everything


def test_what_was_mirrored_costs_no_start_of_wandb(config: SweepConfig, whole: SweepResult, tmp_path: Path) -> None:
    with Tracker("disabled", folder=tmp_path) as tracker:
        assert track_study(config, whole, tmp_path, tracker) is None
    assert not (tmp_path / "wandb").exists()


def test_attributes_of_trials_are_flat(home: Path, whole: SweepResult) -> None:
    study = open_study(sweep(home), whole.folder)
    for trial, row in zip(study.get_trials(deepcopy=False), whole.rows, strict=True):
        assert trial.user_attrs["score.nll"] == row.scores["nll"] == trial.value
        assert trial.user_attrs["size.bytes"] == row.sizes["bytes"]
