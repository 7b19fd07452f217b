"""What a sweep leaves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from methods.framework.errors import RecordError
from methods.framework.plan import Plan
from sweeps.outcome import CHOICE, MOST_KEPT, SweepResult, TrialRow, front, ranked
from sweeps.resident import Resident
from sweeps.study import run_sweep
from tests.support.tiny_sweeps import objectives, sweep


def test_the_outcome_is_written(home: Path, resident: Resident, tmp_path: Path) -> None:
    settings = {"name": "random", "seed": 3}  # draws a front of several plans
    config = sweep(home, budget=None, objectives=objectives(home, "nll", "size"), sampler=settings, trials=8)
    (config.folder(tmp_path) / "front").mkdir(parents=True)
    (config.folder(tmp_path) / "front" / "of_an_earlier_front.json").write_text("{}")
    result = run_sweep(config, store=tmp_path, resident=resident)
    with (result.folder / "trials.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["trial"]) for line in lines] == [row.number for row in result.rows]
    complete = [line for line in lines if line["state"] == "complete"]
    assert [float(line["score.nll"]) for line in complete] == [
        row.scores["nll"] for row in result.rows if row.state == "complete"
    ]
    listed = json.loads((result.folder / "front.json").read_text())["front"]
    assert len(listed) > 1
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


def test_the_best_trials_of_one_objective_are_kept_as_plan_files(whole: SweepResult) -> None:
    listed = json.loads((whole.folder / "best.json").read_text())["best"]
    complete = [row for row in whole.rows if row.state == "complete" and row.same_as is None]
    assert 1 < len(complete) == len(listed) < MOST_KEPT
    assert [entry["scores"]["nll"] for entry in listed] == sorted(row.scores["nll"] for row in complete)
    for entry in listed:
        document = json.loads((whole.folder / entry["file"]).read_text())
        assert Plan.loads(json.dumps(document)).digest == entry["plan"] == whole.rows[entry["trial"]].plan
        told = document["provenance"]
        assert (told["sweep"], told["trial"], told["scores"]) == ("s", entry["trial"], entry["scores"])
        assert told["knobs"] == json.loads(json.dumps(dict(whole.rows[entry["trial"]].knobs)))
    assert {path.name for path in (whole.folder / "best").iterdir()} == {Path(e["file"]).name for e in listed}


def test_trials_compared_on_other_text_rank_before_the_others(tmp_path: Path) -> None:
    scores = [3.0, 1.0, 2.0, 5.0, 4.0]
    rows = [TrialRow(number, "complete", scores={"a": value}) for number, value in enumerate(scores)]
    rows += [TrialRow(5, "complete", scores={"a": 1.0}, same_as=1), TrialRow(6, "refused")]
    down, up = {"a": "minimize"}, {"a": "maximize"}
    assert [row.number for row in ranked(rows, down, tmp_path)] == [1, 2, 0, 4, 3]
    assert [row.number for row in ranked(rows, up, tmp_path)] == [3, 4, 0, 2, 1]
    compared = [{"trial": number, "choice": value} for number, value in ((1, 9.0), (2, 7.0), (0, 8.0))]
    (tmp_path / CHOICE).write_text(json.dumps({"chosen": 2, "trials": compared}))
    assert [row.number for row in ranked(rows, down, tmp_path)] == [2, 0, 1, 4, 3]
    (tmp_path / CHOICE).write_text(json.dumps({"chosen": 1, "trials": compared}))
    assert [row.number for row in ranked(rows, up, tmp_path)] == [1, 0, 2, 3, 4]
    (tmp_path / CHOICE).write_text(json.dumps({"chosen": 2, "trials": [{"trial": 1}]}))
    with pytest.raises(
        RecordError, match=r"choice\.json is not the choice of a sweep \(KeyError: 'choice'\); remove it"
    ):
        ranked(rows, down, tmp_path)
