"""Shared folders are built once, by whoever comes first, and what changes in them is seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.checkpoint.checkpoint import Checkpoint
from tests.support import tiny
from tests.support.built_once import PLACE, built_once, changed


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(PLACE, str(tmp_path))
    return tmp_path


def test_a_folder_is_built_once_and_read_only(place: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        (folder / "file").write_text("1")

    assert built_once("one", build) == built_once("one", build) == place / "one"
    assert len(calls) == 1 and not (place / "one" / "file").stat().st_mode & 0o222
    assert changed(place) == []


def test_the_first_of_two_builders_wins(place: Path) -> None:
    def slow(folder: Path) -> None:
        (folder / "file").write_text("late")
        built_once("one", lambda other: (other / "file").write_text("first"))

    assert (built_once("one", slow) / "file").read_text() == "first"
    assert changed(place) == [] and sorted(p.name for p in place.iterdir() if p.is_dir()) == ["one"]


@pytest.mark.parametrize("damage", ["written", "added", "removed"])
def test_damage_is_seen(damage: str, place: Path) -> None:
    folder = built_once("one", lambda part: (part / "file").write_text("1"))
    if damage == "added":
        (folder / "more").write_text("2")
    else:
        os.remove(folder / "file")
    if damage == "written":
        (folder / "file").write_text("2")
    assert changed(place) == ["one"]


def test_copies_of_a_tiny_checkpoint_may_be_damaged(place: Path) -> None:
    shared = tiny.tiny_checkpoint("mixtral")
    copy = tiny.tiny_checkpoint("mixtral", place / "mine" / "copy")
    assert tiny.tiny_checkpoint("mixtral") == shared != tiny.tiny_checkpoint("mixtral", seed=1)
    assert Checkpoint.open(copy).content == Checkpoint.open(shared).content
    (copy / "config.json").write_text("{}")
    assert changed(place) == []
