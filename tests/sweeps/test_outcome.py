"""What a sweep leaves."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from methods.framework.plan import Plan
from sweeps.outcome import TrialRow, front
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
