"""The page of families: tried here on one of them, and true about all in what costs nothing to look up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bench.laws.tried_families as trying
from bench.families.family import families
from bench.laws.tried_families import STEPS, Tried, attempt, file_lines, page, served_by_vllm
from bench.models.tiny import RUNNABLE
from methods.framework.errors import CheckpointError
from tests.support.places import ROOT

STATED = (ROOT / "docs" / "models.md").read_text()


def rows(text: str) -> dict[str, list[str]]:
    found = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")
    ]
    return {cells[0]: cells[1:] for cells in found if re.fullmatch(r"\w+", cells[0]) and cells[0] != "family"}


def test_the_page_has_every_family_with_its_lines() -> None:
    lines, found = file_lines(), rows(STATED)
    assert set(lines) == set(families()) and set(found) == set(RUNNABLE)
    assert {family: int(cells[-1]) for family, cells in found.items()} == {family: lines[family] for family in RUNNABLE}
    for family, cells in found.items():
        assert cells[-2] == served_by_vllm().get(family, "not tried"), family
    for name in set(families()) - set(RUNNABLE):
        assert name in STATED


def test_a_step_that_works_is_a_yes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {"select": ("counts",), "drop": ("block",)}
    monkeypatch.setattr(trying, "STEPS", few)
    found = attempt("qwen3_next", tmp_path)
    assert found.cells == dict.fromkeys(("load", "calibrate", *few), "yes") and found.refuses == ("awq",)


def test_a_step_that_fails_is_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trying, "STEPS", {"select": ("counts",), "drop": ("block",)})

    def refuse(checkpoint: object) -> None:
        raise CheckpointError("too wide")

    with monkeypatch.context() as here:
        here.setattr("bench.applying.apply.apply", lambda checkpoint, *more, **settings: refuse(checkpoint))
        found = attempt("mixtral", tmp_path / "c")
    assert (found.cells["select"], found.cells["drop"]) == ("counts: too wide", "block: too wide")
    monkeypatch.setattr("bench.calibration.calibrate.calibrate", lambda checkpoint, *more: refuse(checkpoint))
    found = attempt("mixtral", tmp_path / "a")
    assert found.cells == {"load": "yes", "calibrate": "too wide"}
    monkeypatch.setattr("bench.models.load.check_loadable", refuse)
    assert attempt("mixtral", tmp_path / "b").cells == {"load": "too wide"}


def test_reasons_are_numbered_once() -> None:
    good = dict.fromkeys(("load", "calibrate", *STEPS), "yes")
    found = [
        Tried("one", good | {"merge": "no"}),
        Tried("two", good | {"merge": "no", "factor": "differs"}, ("awq", "gptq")),
        Tried("three", {"load": "bad"}),
    ]
    text = page(found, {"one": 1, "two": 22, "three": 3}, {"two": "plug-in"}, ["written"], ["dense"])
    table = rows(text)
    merge = ("load", "calibrate", *STEPS).index("merge")
    assert table["one"][merge] == table["two"][merge] == "no [1]" and table["one"][-3:] == ["none", "not tried", "1"]
    assert (
        table["two"][-3:] == ["awq, gptq", "plug-in", "22"]
        and "2. differs" in text
        and "3. bad" in text
        and "1. no" in text
    )
    assert table["three"][1] == "not reached" and "not run: written." in text and "comparison: dense." in text
