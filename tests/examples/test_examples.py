"""Every example runs as it stands, on a pocket model, and leaves what it promises."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.records.record import write_record
from tests.support.records import record

EXAMPLES = Path(__file__).parents[2] / "examples"


def run(name: str, *arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")


def test_compress_a_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("compress_a_model", "--out", tmp_path / "out", "--store", tmp_path, "--sequences", 2)
    assert Checkpoint.open(tmp_path / "out").inventory.num_experts == 24
    told = capsys.readouterr().out
    assert "24 experts, 1,574,016 parameters" in told and "holds 1,574,016 parameters" in told


def test_write_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("write_a_method", "--out", tmp_path / "out", "--store", tmp_path)
    layers = Checkpoint.open(tmp_path / "out").inventory.layers
    assert [layer.experts for layer in layers] == [4, 8, 4, 8, 4, 8]
    assert "layer 1: all experts stay" in capsys.readouterr().out


def test_search_knobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("search_knobs", "--trials", 2, "--store", tmp_path)
    assert "best of 2: trial" in capsys.readouterr().out
    assert (tmp_path / "sweeps" / "example" / "trials.csv").exists()


def test_redraw_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "store" / "records").mkdir(parents=True)
    for one in (record(None), record("alpha")):
        write_record(one, tmp_path / "store" / "records")
    run("redraw_figures", tmp_path / "store", "--out", tmp_path / "out")
    told = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "out" / "leaderboard.csv") in told
    assert {Path(line) for line in told if line.endswith(".svg")} == set((tmp_path / "out").rglob("*.svg")) != set()


def test_every_example_is_tested() -> None:
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {path.stem for path in EXAMPLES.glob("*.py")} <= tested
