"""``moebench methods``: one line each, one in full, and methods of other distributions beside ours."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from methods.registry import BUILT_IN, method_class
from tests.support.command_line import moebench
from tests.support.distribution import announce

PLUGIN = '''
"""Methods of somebody else."""

from typing import ClassVar

from pydantic import Field

from methods import Inventory, LayerPlan, LayerwiseMethod, Stats, expert_counts


class LastExperts(LayerwiseMethod):
    """Keep the last experts of each layer.

    *Source*: nowhere.
    """

    name: ClassVar[str] = "last_experts"
    title: ClassVar[str] = "Last experts"
    source: ClassVar[str] = "a test"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    skip: int = Field(default=0, ge=0, le=3, description="experts at the end that go nevertheless")

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        count, end = expert_counts(inventory, self.keep)[layer], inventory.layers[layer].experts - self.skip
        return LayerPlan(experts=tuple(range(end - count, end)))
'''


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the path that holds an installed distribution with one method."""
    (tmp_path / "somebody_else.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(announce(tmp_path, "moebench.methods", "last_experts", "somebody_else:LastExperts"))
    return tmp_path


def test_the_list_has_one_line_for_each(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "methods", columns=60)  # into a file, lines are not cut
    assert status == 0
    assert [line.split()[0] for line in told.splitlines()] == list(BUILT_IN)
    assert all(len(line.split()) > 3 for line in told.splitlines())


def test_one_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "methods", "stun")
    assert status == 0
    assert "STUN (structured stage)" in told and "*Differs*: the greedy clustering" in told
    assert "source   arXiv 2409.06211" in told and "reads    router_row_gram" in told
    row = next(line for line in told.splitlines() if "coactivation_weight" in line)
    assert "number >= 0, <= 1" in row and "0.0" in row and "How much being chosen" in row


def test_an_unknown_one_gets_the_closest(capsys: pytest.CaptureFixture[str]) -> None:
    status, told = moebench(capsys, "methods", "raep")
    assert status == 1
    assert "unknown method 'raep'; did you mean 'reap'?" in told


def test_a_method_of_another_distribution(
    distribution: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = moebench(capsys, "methods")[1].splitlines()
    assert listed[-1].split() == [
        "last_experts",
        "experts",
        *["Keep", "the", "last", "experts", "of", "each", "layer."],
    ]
    shown = moebench(capsys, "methods", "last_experts")[1]
    assert "Methods of somebody else." in shown and "experts at the end that go nevertheless" in shown
    monkeypatch.chdir(distribution)
    arguments = ("plan", "pocket-mixtral", "last_experts", "--set", "skip=1", "--sequences", 2, "--length", 16)
    status, told = moebench(capsys, *arguments, "--store", distribution)
    assert status == 0, told
    plan = json.loads(Path("plan.json").read_text())
    assert plan["layers"][0]["experts"] == [3, 4, 5, 6]
    assert plan["provenance"]["method"] == "last_experts" and plan["provenance"]["knobs"] == {"keep": 0.5, "skip": 1}
    assert method_class("last_experts").title == "Last experts"
