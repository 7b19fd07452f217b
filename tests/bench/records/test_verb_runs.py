"""Runs of W&B of timings and trainings that leave no record: numbers, job types, and what they read and made."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.records.record import BatchTiming, Interval, Timing
from bench.records.run_contents import checkpoint_name
from bench.records.verb_runs import timing_rows, training_begins
from tests.bench.records.test_mirror import entries, no_key

__all__ = ["no_key"]


def interval(median: float) -> Interval:
    return Interval(median=median, low=median - 0.1, high=median + 0.1, n=5)


def batch(size: int, ratio: float | None = None) -> BatchTiming:
    return BatchTiming(
        batch=size, prefill=interval(2.0), decode=interval(3.0), decode_ratio=interval(ratio) if ratio else None
    )


ROWS = [
    ("models/base", Timing(batches=(batch(1), batch(8)))),
    ("half", Timing(batches=(batch(1, 1.5), batch(8, 1.25)), decode_ratio=interval(1.5), marks=("noisy",))),
]


def test_every_batch_size_is_a_row_with_its_intervals() -> None:
    columns, lines = timing_rows([*ROWS, ("third", Timing(reason="too [large]"))])
    told = [dict(zip(columns, line, strict=True)) for line in lines]
    assert [(one["checkpoint"], one["batch"], one["decode_ratio_median"]) for one in told[:4]] == [
        ("models/base", 1, None),
        ("models/base", 8, None),
        ("half", 1, 1.5),
        ("half", 8, 1.25),
    ]
    assert (told[2]["decode_ratio_low"], told[2]["decode_ratio_high"], told[2]["decode_n"]) == (1.4, 1.6, 5)
    assert (told[4]["checkpoint"], told[4]["reason"], told[4]["batch"]) == ("third", "too [large]", None)


def test_a_training_is_one_run_however_often_it_is_begun() -> None:
    first, again = (training_begins("half", "mixtral", "lora", {"kind": "lora", "rate": 0.5, "seed": 3}) for _ in "ab")
    assert first == again and first.name == "half · lora rate=.5 · seed 3"
    assert first.arguments(None)["job_type"] == "recovery"
    assert training_begins("half", "mixtral", "lora", {"rate": 0.25}).id != first.id


SCRIPT = """
import json, sys, warnings
from pathlib import Path
from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.records.mirror import Tracker, TrackingWarning
from bench.records.verb_runs import end_training, track_timing, training_begins
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.bench.records.test_verb_runs import ROWS
from tests.support.tiny import tiny_checkpoint
warnings.simplefilter("error", TrackingWarning)
folder = Path(sys.argv[1])
source = Checkpoint.open(tiny_checkpoint("mixtral", folder / "base"))
plan = Plan.of(source.inventory, [LayerPlan(experts=(0, 1)) for _ in source.inventory.layers])
half = apply(source, plan, folder / "half", {})
trained = apply(source, plan, folder / "trained", {})
document = json.loads((trained / "plan.json").read_text())
document["provenance"]["recovery"] = [{"digest": "e" * 32}]
(trained / "plan.json").write_text(json.dumps(document))
print(source.content, plan.digest)
with Tracker("offline", folder=folder, project="p") as tracker:
    for _ in range(2):
        track_timing(ROWS, [folder / "base", half, trained], {"repeats": 5}, tracker)
    row = training_begins("half", "mixtral", "lora", {"rate": 0.5})
    tracker.begin(row)
    tracker.tell(row.id, "recover 1/2 loss 3.5")
    numbers = {"digest": "d" * 32, "steps": 2, "losses": (3.5, 2.5)}
    end_training(row, half, folder / "trained", numbers, tracker)
"""


@pytest.mark.e2e
def test_both_are_runs_with_lineage(no_key: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(no_key)]
    content, plan = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    runs: dict[str, list[Any]] = {}
    for folder in (no_key / "wandb").glob("offline-run-*"):
        found = entries(folder)
        runs[next(entry.run for entry in found if entry.HasField("run")).job_type] = found
    assert sorted(runs) == ["recovery", "timing"], "what was sent is not sent again"
    half = checkpoint_name(content, plan)
    assert artifacts(runs["timing"]) == {
        "model": True,
        half: True,
        "checkpoint-eeeeeeeeeeee": True,
        "timing": False,
    }
    assert artifacts(runs["recovery"]) == {half: True, "checkpoint-dddddddddddd": False}
    assert numbers(runs["timing"])["speed/decode_ratio"] == 1.5
    assert numbers(runs["timing"])["speed/marks"] == "noisy"
    trained = numbers(runs["recovery"])
    assert (trained["loss/first"], trained["loss/last"], trained["steps"]) == (3.5, 2.5, 2)


def artifacts(found: list[Any]) -> dict[str, bool]:
    """Return whether a run reads an artifact or makes it, by name; of a source the kind stands for the name."""
    told = [entry.artifact for entry in found if entry.HasField("artifact")]
    told += [entry.request.log_artifact.artifact for entry in found if entry.request.HasField("log_artifact")]
    names = {one.name if one.type == "checkpoint" else one.type: one.use_after_commit for one in told}
    return {name: read for name, read in names.items() if name != "run_table"}


def numbers(found: list[Any]) -> dict[str, Any]:
    return {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for entry in found
        if entry.HasField("summary")
        for item in entry.summary.update
    }
