"""``moebench solve`` from a table to plans and a frontier."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.commands.plan_file import read_plan
from sweeps.solving.table import write_table
from tests.support.command_line import moebench
from tests.support.inventories import toy_inventory
from tests.support.solving import expert_table, sizes_of


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write_table(tmp_path / "table.json", expert_table())
    return tmp_path / "table.json"


def test_plans_within_a_budget(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "solved"
    status, told = moebench(capsys, "solve", file, "--budget", "experts=0.75", "--best", 2, "--out", out)
    assert status == 0, told
    assert "75.0%" in told and "1 4 2" in told and "2 3x2" in told
    plan = read_plan(out / "plan-01.json").normalised(toy_inventory())
    assert [layer.experts for layer in plan.layers] == [None, None, (0, 1)]
    provenance = json.loads((out / "plan-01.json").read_text())["provenance"]
    assert provenance["sweep"] == "toy study" and provenance["budget"] == {"experts": 0.75}
    assert provenance["predicted"] == {"damage": 2.0, "nll": 4.5} and provenance["table"] == expert_table().digest
    assert provenance["sizes"] == sizes_of(plan, toy_inventory())
    assert sorted(path.name for path in out.iterdir()) == ["plan-01.json", "plan-02.json"]


def test_the_frontier_is_written_and_drawn(file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "solved"
    status, told = moebench(capsys, "solve", file, "--frontier", "--out", out)
    assert status == 0, told
    assert sorted(path.name for path in out.iterdir()) == [f"frontier_bytes.{kind}" for kind in ("csv", "png", "svg")]
    assert len((out / "frontier_bytes.csv").read_text().splitlines()) == 6
    assert "bytes kept" in (out / "frontier_bytes.svg").read_text()
    assert moebench(capsys, "solve", file, "--frontier", "--budget", "experts=6", "--out", out)[0] == 0
    assert (out / "frontier_experts.csv").exists() and (out / "plan-01.json").exists()


def test_without_a_folder_nothing_is_written(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "solve", file, "--budget", "bytes=1")
    assert status == 0 and "--out FOLDER" in told
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("words", "message"),
    [([], "nothing to solve"), (["--frontier"], "name a folder"), (["--budget", "bytes=0.1"], "allow bytes="),
     (["--budget", "bites=0.5"], "did you mean 'bytes'")],
)  # fmt: skip
def test_errors_are_one_line(words: list[str], message: str, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "solve", file, *words)
    assert status == 1 and message in told and len(told.strip().splitlines()) == 1


def test_options_that_are_not_measured_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_table(tmp_path / "table.json", expert_table({1: (4.0, None, 0.0), 2: (2.0, 1.5, 0.0)}))
    assert (
        "1 of 6 options have not been measured"
        in moebench(capsys, "solve", tmp_path / "table.json", "--budget", "bytes=1")[1]
    )


def test_a_study_without_a_table_is_told_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "solve", tmp_path / "table.json", "--budget", "experts=0.75")
    assert status != 0 and "shapes: false" in " ".join(told.split())
