"""From a sweep's file to records, on the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import sweeps.opening
from bench.records.record import Record, read_records
from sweeps.resident import Resident
from tests.support.command_line import moebench
from tests.support.tiny_sweeps import objectives, sweep


@pytest.fixture
def file(home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sweeps.opening, "open_resident", lambda *_: resident)
    return written(home, tmp_path / "file.yaml")


def written(home: Path, path: Path, **changes: Any) -> Path:
    both = objectives(home, "nll", "size")
    config = sweep(home, name="pair", budget=None, objectives=both, sampler={"name": "random", "seed": 3}, **changes)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_unset=True)))
    return path


def records(store: Path) -> list[Record]:
    return list(read_records(store / "records"))


def test_a_sweep_says_how_its_front_is_run_and_promote_runs_it(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = tmp_path / "store"
    options = ("--store", store, "--track", "disabled")
    status, told = moebench(capsys, "sweep", file, *options, columns=1000)
    assert status == 0 and f"next: `moebench promote pair --store {store}` runs the front" in told
    assert not (store / "records").exists() and not (store / "wandb").exists()
    status, told = moebench(capsys, "promote", "pair", "--top", 2, "--no-time", *options, columns=1000)
    assert status == 0 and f"next: `moebench report {store}` writes the leaderboard" in told
    found = records(store)
    assert sorted(record.method or "base" for record in found) == ["base", "plan", "plan"]
    assert {record.timing for record in found} == {None} and {record.group for record in found} == {"pair"}
    status, told = moebench(capsys, "promote", "pear", *options)
    assert status == 1 and "did you mean 'pair'" in told


def test_the_file_of_a_sweep_may_ask_for_the_runs(
    home: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store, last = tmp_path / "store", {"top": 1, "timing": {"enabled": False}}
    written(home, file, promote=last)
    status, told = moebench(capsys, "sweep", file, "--store", store, "--track", "disabled", columns=1000)
    assert status == 0 and "next: `moebench report" in told and "moebench promote" not in told
    front = json.loads((store / "sweeps" / "pair" / "front.json").read_text())["front"]
    best = min(front, key=lambda entry: entry["scores"]["nll"])
    assert len(front) > 1 and [record.plan for record in records(store) if record.method] == [best["plan"]]


def test_a_mode_that_is_none_is_refused_before_the_search(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, told = moebench(capsys, "sweep", file, "--store", tmp_path / "store", "--track", "offlin")
    assert status == 1 and "unknown W&B mode 'offlin'" in told and not (tmp_path / "store").exists()
