"""What README says of the command line is true."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import open_checkpoint
from bench.cli import VERBS
from methods import Stats

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_verbs_of_the_readme_are_those_of_the_command_line() -> None:
    table = README.split("| verb | does |")[1].split("\n\n")[0]
    rows = [row.split("|")[1] for row in table.splitlines() if row.startswith("| `")]
    told = [name.split()[0] for row in rows for name in re.findall(r"`([^`]+)`", row)]
    assert sorted(told) == sorted(str(verb.name) for verb in VERBS)


def test_commands_of_the_readme_exist() -> None:
    assert set(re.findall(r"moebench ([a-z]+)", README)) <= {str(verb.name) for verb in VERBS}


def python_block(heading: str) -> str:
    return README.split(f"\n{heading}\n")[1].split("```python\n")[1].split("```")[0]


def test_the_example_of_the_library_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(python_block("## As a library"), names)
    assert sum(weight.numel() for weight in names["model"].parameters()) == names["half"].cost.parameters
    assert (tmp_path / "half" / "config.json").exists() and "pocket_facts" in capsys.readouterr().out


def test_the_method_of_the_readme_decides() -> None:
    names: dict[str, Any] = {}
    exec(python_block("### Adding a method"), names)
    inventory = open_checkpoint("pocket-mixtral").inventory
    values = tuple(np.arange(8.0) for _ in inventory.layers)
    plan = names["RouterNorm"](keep=0.5).plan(inventory, Stats({"router_probability": values}))
    assert {layer.experts for layer in plan.layers} == {(4, 5, 6, 7)}
