"""Runs of W&B that begin with the work: names, stages, losses, lineage, one run however often it is interrupted; overviews."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.records.live_run import numbers_of
from bench.records.mirror import Tracker
from bench.records.overview_run import before_and_after, overview_rows, track_overview
from bench.records.record import BatchTiming, Interval, Record, RecoveryInfo, Score, Timing, write_record
from bench.records.run_contents import Beginning, speed_table, stem, summary
from tests.bench.records.test_mirror import entries, no_key, record

__all__ = ["no_key"]

BASE = record("00000000000000b0", method=None, title="base", knobs={}, scores=record().scores[:1])
TRAINED = RecoveryInfo(
    kind="lora",
    settings={},
    corpus="c",
    corpus_digest="d",
    tokens=64,
    steps=2,
    trained_parameters=8,
    seconds=1.0,
    wall=1.0,
    losses=(3.0, 2.0),
)


def mean(scores: Sequence[Score]) -> float | None:
    return sum(score.value for score in scores) / len(scores) if scores else None


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"knobs": {"keep": 0.5}, "seeds": {"calibration": 11}}, "pocket · REAP keep=.5 · seed 11"),
        ({"knobs": {"keep": [0.25, 1.0]}}, "pocket · REAP keep=.25/1 · seed 3"),
        ({"knobs": {"keep": [0.25, 0.5, 1.0] * 10}}, "pocket · REAP keep=.583 by layer (.25 to 1) · seed 3"),
        (
            {"method": "svd", "title": "SVD", "knobs": {"keep": 0.5, "allocation": "spectrum", "exponent": None}},
            "pocket · SVD keep=.5 allocation=spectrum · seed 3",
        ),
        ({"method": "gone", "knobs": {"keep": 0.5, "own": 2}}, "pocket · REAP keep=.5 own=2 · seed 3"),
        ({"method": None, "title": "base", "knobs": {}}, "pocket · base"),
    ],
)
def test_names_tell_the_setting(changes: dict[str, Any], name: str) -> None:
    assert Beginning.of(record(**changes)).name == name


def test_a_row_that_is_tried_again_is_the_same_run() -> None:
    first, again = (Beginning.of(record(name)).arguments(None) for name in ("00000000000000aa", "00000000000000aa-2"))
    assert first == again and first["id"] == "00000000000000aa" == stem("00000000000000aa-12")
    trained = Beginning.of(record(recovery=TRAINED)).arguments("g")
    assert (first["job_type"], first["group"]) == ("run", "demo")
    assert (trained["job_type"], trained["group"]) == ("recovery", "g")


@pytest.mark.parametrize(
    ("stage", "numbers"),
    [
        ("plan", {}),
        ("evaluate pocket_facts 3/12", {"progress/evaluate/pocket_facts": 0.25}),
        ("recover 2/8 loss 1.5", {"progress/recover": 0.25, "recovery/step": 2, "recovery/loss": 1.5}),
        ("recover 0/0 loss 1.5", {"recovery/step": 0, "recovery/loss": 1.5}),
    ],
)
def test_stages_in_numbers(stage: str, numbers: dict[str, float]) -> None:
    assert numbers_of(stage) == numbers


def interval(median: float) -> Interval:
    return Interval(median=median, low=median - 0.1, high=median + 0.1, n=5)


def test_the_summary_begins_with_what_tables_show() -> None:
    timing = Timing(decode=interval(10.0), decode_ratio=interval(1.5), prefill_ratio=interval(1.2), marks=("noisy",))
    half = record(scores=(record().scores[0].model_copy(update={"value": 0.25}),), timing=timing)
    numbers = summary(half, BASE, mean)
    assert (numbers["average"], numbers["retention"], numbers["average_items"]) == (0.25, 0.5, 10)
    assert (numbers["size/bytes"], numbers["size/share"]) == (64, 0.75)
    assert (numbers["speed/decode_ratio"], numbers["speed/prefill_ratio"]) == (1.5, 1.2)
    assert (numbers["speed/n"], numbers["speed/marks"]) == (5, "noisy")
    assert "average" not in summary(half) and "speed/n" not in summary(record())


def test_speeds_stand_with_their_intervals() -> None:
    batch = BatchTiming(
        batch=8, prefill=interval(2.0), decode=interval(3.0), decode_ratio=interval(1.5), marks=("uneven",)
    )
    columns, rows = speed_table(record(timing=Timing(batches=(batch,))))
    told = dict(zip(columns, rows[0], strict=True))
    assert (told["batch"], told["decode_ratio_median"], told["decode_ratio_low"]) == (8, 1.5, 1.4)
    assert told["prefill_ratio_n"] is None and told["marks"] == "uneven"


def test_the_overview_pairs_what_was_trained_with_what_was_not(tmp_path: Path) -> None:
    tracker = Tracker("disabled", folder=tmp_path, average=mean)
    plain, trained = record(), record("00000000000000cc", recovery=TRAINED)
    rows = overview_rows([BASE, plain, trained], tracker)
    assert [row[1] for row in rows] == ["base", "REAP", "REAP"] and [row[-1] for row in rows] == [False, False, True]
    assert [row[2] for row in rows] == [0.5, 0.5, 0.5] and rows[1][3] == 1.0
    pairs = list(before_and_after([BASE, plain, trained], tracker))
    assert [(when, value) for _, when, value in pairs] == [("before", 0.5), ("after", 0.5)]
    assert list(before_and_after([BASE, trained], tracker)) == []
    assert track_overview([BASE], tracker) == []


LIVE = """
import os, sys, warnings
from pathlib import Path
from bench.records.mirror import Tracker, TrackingWarning
from bench.records.run_contents import Beginning
from tests.bench.records.test_live_run import BASE, TRAINED, mean
from tests.bench.records.test_mirror import PLAN, record
warnings.simplefilter("error", TrackingWarning)
row = record(recovery=TRAINED)
with Tracker("offline", folder=Path(sys.argv[1]), project="p", average=mean) as tracker:
    tracker.begin(Beginning.of(row))
    for stage in ("calibrate", "plan", "recover 1/2 loss 3.5", "recover 2/2 loss 2.5", "evaluate arc_easy 1/10"):
        tracker.tell(row.id, stage)
    if sys.argv[2] == "killed":
        os._exit(9)
    if sys.argv[2] == "finished":
        print(tracker.track(row, PLAN, BASE))
        print(tracker.track(row, PLAN, BASE))
"""


def live(store: Path, end: str) -> list[str]:
    command = [sys.executable, "-c", LIVE, str(store), end]
    return subprocess.run(command, capture_output=True, text=True, check=end != "killed").stdout.splitlines()


@pytest.mark.e2e
def test_a_run_begins_with_the_work_and_stays_one_when_it_is_interrupted(no_key: Path) -> None:
    store = no_key / "store"
    for end in ("killed", "interrupted"):
        assert live(store, end) == []
    folder, again = live(store, "finished")
    assert again == "None" and [str(path) for path in (store / "wandb").glob("offline-run-*")] == [folder]

    found = entries(Path(folder))
    run = next(entry.run for entry in found if entry.HasField("run"))
    assert (run.run_id, run.job_type, run.run_group) == ("00000000000000aa", "recovery", "demo")
    assert run.display_name == "pocket · REAP keep=.25/.75 · seed 3"
    lines = [
        {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in entry.history.item}
        for entry in found
        if entry.HasField("history")
    ]
    told = [line for line in lines if any(name.startswith(("progress", "recovery", "stage")) for name in line)]
    assert [line["stage_number"] for line in told if "stage_number" in line] == [1, 2, 3, 4]
    assert [(line["recovery/step"], line["recovery/loss"]) for line in told if "recovery/step" in line] == [
        (1, 3.5),
        (2, 2.5),
    ]
    assert told[-1]["progress/evaluate/arc_easy"] == 0.1
    numbers: dict[str, Any] = {}
    for entry in found:
        if entry.HasField("summary"):
            numbers |= {item.key or "/".join(item.nested_key): item.value_json for item in entry.summary.update}
    assert json.loads(numbers["retention"]) == 1.0 and json.loads(numbers["stage"]) == "evaluate"
    artifacts = [entry.artifact for entry in found if entry.HasField("artifact")]
    artifacts += [entry.request.log_artifact.artifact for entry in found if entry.request.HasField("log_artifact")]
    assert {one.type: one.use_after_commit for one in artifacts if one.type != "run_table"} == {
        "model": True,
        "plan": False,
        "checkpoint": False,
        "record": False,
    }, "the run reads the model and makes the others"


@pytest.mark.e2e
def test_a_store_is_mirrored_afterwards_once(no_key: Path) -> None:
    rows: list[Record] = [BASE, record()]
    for row in rows:
        write_record(row, no_key / "store" / "records")
    command = [sys.executable, "-m", "bench.cli", "track", str(no_key / "store"), "--mode", "offline"]
    told = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert told[0].startswith("3 runs of W&B, 2 records") and told[1].startswith("0 runs of W&B")
    assert "wandb sync" in told[0]
    runs = {}
    for folder in (no_key / "store" / "wandb").glob("offline-run-*"):
        found = entries(folder)
        run = next(entry.run for entry in found if entry.HasField("run"))
        runs[run.job_type, run.display_name] = b"".join(entry.SerializeToString() for entry in found)
    assert set(runs) == {
        ("run", "pocket · base"),
        ("run", "pocket · REAP keep=.25/.75 · seed 3"),
        ("overview", "pocket · overview"),
    }
    assert b"Accuracy against bytes" in runs["overview", "pocket · overview"]
