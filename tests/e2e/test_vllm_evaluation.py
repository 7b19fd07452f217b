"""Scores through vLLM beside those of transformers on a pocket model, and of what only our plug-in can serve."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan

PROJECT = Path(__file__).resolve().parents[2]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"),
]


def test_both_backends_agree_on_layers_that_differ(tmp_path: Path) -> None:
    checkpoint = Checkpoint.open("pocket-mixtral")
    layers = [LayerPlan(experts=(0, 2, 5)), *(LayerPlan() for _ in checkpoint.inventory.layers[1:])]
    folder = apply(checkpoint, Plan.of(checkpoint.inventory, layers), tmp_path / "uneven")
    command = [sys.executable, "-m", "bench.laws.backends", str(folder), "--limit", "8"]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert "pocket_ppl" in done.stdout and "unended" in done.stdout
