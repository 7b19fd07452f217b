"""The recipes of README that need neither hub nor GPU run as they stand, one after the other, in one store."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import ROOT
from tests.support.shown_commands import commands

pytestmark = pytest.mark.e2e

HUB = "allenai/OLMoE-1B-7B-0924"
LEAVES = {
    "make demo": "sets up and times under vLLM",
    "make test": "is what runs this test",
    "make setup": "is what made this environment",
    "source .venv/bin/activate": "belongs to a shell",
    "moebench serve half --port 8000": "does not end; tests/e2e/test_serving_parity.py serves",
}
"""Commands of README that are not run here, and why; they are read by the command line in tests/test_shown_commands.py."""

MADE = {
    "moebench report runs": "report/leaderboard.html",
    "moebench sweep sweeps/presets/experts-and-bits.yaml": "runs/sweeps/experts-and-bits/table.json",
    "moebench paper holistic figure-7 --model pocket --track disabled": "papers/holistic/figure-7.svg",
    "moebench apply pocket-mixtral half.json half": "half/config.json",
}
"""What some of them leave behind."""


def test_recipes_of_the_readme_run(tmp_path: Path) -> None:
    (tmp_path / "sweeps").symlink_to(ROOT / "sweeps")
    (tmp_path / "bench").symlink_to(ROOT / "bench")
    shown = [shlex.join(one.words) for one in commands("README.md", (ROOT / "README.md").read_text())]
    assert LEAVES.keys() - {"make setup", "source .venv/bin/activate"} <= {*shown} and MADE.keys() <= {*shown}
    ran = [line for line in shown if HUB not in line and line not in LEAVES]
    assert len(ran) >= 8
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }
    for line in ran:
        words = [sys.executable, "-c", "from bench.cli import main; main()", *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{line}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        assert line not in MADE or (tmp_path / MADE[line]).exists(), f"{line} left no {MADE[line]}"
