"""In bfloat16, models whose layers differ score in lm-eval's vLLM backend what they score in transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.apply import apply
from bench.checkpoint import Checkpoint
from bench.evaluate import evaluate
from bench.load import load_model, load_tokenizer
from bench.pocket import write_tasks
from bench.record import Score
from methods.plan import LayerPlan, Plan

pytestmark = pytest.mark.e2e

TASK, ITEMS = "pocket_arithmetic", 100
# Share of the experts removed beside one to three in each layer: so many that answers are neither all right nor guessed.
REMOVED = {"pocket-mixtral": 0.0, "pocket-qwen2moe": 0.25, "pocket-deepseek": 0.0}

# lm-eval's vLLM backend keeps its engine until the process ends, so it has one of its own for each model.
_CHILD = """
import json, sys
from pathlib import Path
from bench.serving.vllm_cli import answer_version
answer_version()
import lm_eval, torch
from lm_eval.tasks import TaskManager
from bench.serving.engine import needed_options
path, tasks, task, limit = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
options = needed_options(path, "bfloat16", not torch.cuda.is_available())
found = lm_eval.simple_evaluate(
    model="vllm",
    model_args={"pretrained": str(path), "dtype": "bfloat16", "max_model_len": 128, "kv_cache_memory_bytes": 1 << 28,
                **options},
    tasks=[task], limit=limit, log_samples=True, batch_size="auto",
    task_manager=TaskManager(include_path=tasks, include_defaults=False),
)
hits = [sample["acc"] for sample in found["samples"][task]]
print("RESULT", json.dumps({"value": found["results"][task]["acc,none"], "hits": hits}), flush=True)
"""


def _vllm(path: Path, tasks: Path, log: Path) -> Any:
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    with log.open("w") as errors:
        done = subprocess.run(
            [sys.executable, "-c", _CHILD, str(path), str(tasks), TASK, str(ITEMS)],
            env={**os.environ, **settings},
            cwd=Path(__file__).resolve().parents[1],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=600,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, log.read_text()[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


@pytest.mark.parametrize("name", REMOVED)
def test_accuracy_agrees_with_transformers(name: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(name)
    layers = []
    for index, layer in enumerate(checkpoint.inventory.layers):
        kept = layer.experts - 1 - index % 3 - int(REMOVED[name] * layer.experts)
        layers.append(LayerPlan(experts=tuple(range(kept))) if layer.mlp == "moe" else LayerPlan())
    path = apply(checkpoint, Plan.of(checkpoint.inventory, layers), tmp_path / "unequal")
    tasks = write_tasks(tmp_path / "tasks", items=ITEMS)
    model = load_model(path, dtype=torch.bfloat16)
    evaluation = evaluate(model, load_tokenizer(path), [TASK], include_path=tasks, limit=ITEMS, model_digest=name)
    (own,) = [score for score in evaluation.scores if score.metric == "acc"]
    assert isinstance(own, Score) and own.stderr is not None and own.n == ITEMS
    found = _vllm(path, tasks, tmp_path / "log")
    assert len(found["hits"]) == ITEMS
    assert 0.4 < own.value < 0.95, "a model that guesses would agree with anything that guesses"
    print(f"{name}: transformers {own.value:.3f} +- {own.stderr:.3f}, vLLM {found['value']:.3f}")
    assert abs(found["value"] - own.value) <= 2 * own.stderr
