"""In bfloat16, models that need our plug-in score in lm-eval's vLLM backend what they score in transformers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.evaluation.evaluate import evaluate
from bench.models.load import load_model, load_tokenizer
from bench.pocket import write_tasks
from bench.records.record import Score
from methods.framework.inside import LowRank
from methods.framework.inside_fit import matrix_shapes
from methods.framework.inventory import LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.places import ROOT

pytestmark = pytest.mark.e2e

TASK, ITEMS = "pocket_arithmetic", 100
# What is cut, and how much of it, which differs a little from layer to layer and expert to expert: so much that answers are
# neither all right nor guessed. Shares are of the experts that go, of the rank and of the channels that stay.
CASES = {
    "pocket-mixtral": ("experts", 0.0),
    "pocket-qwen2moe": ("experts", 0.25),
    "pocket-deepseek": ("experts", 0.0),
    "pocket-qwen2moe factored": ("ranks", 0.6),
    "pocket-mixtral channels": ("channels", 0.75),
}

# lm-eval's vLLM backend keeps its engine until the process ends, so it has one of its own for each model.
_CHILD = """
import json, sys
from pathlib import Path
from bench.serving.processes.vllm_cli import answer_version
answer_version()
import lm_eval, torch
from lm_eval.tasks import TaskManager
from bench.serving.servable import needed_options
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
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            timeout=600,
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert done.returncode == 0 and lines, log.read_text()[-3000:]
    return json.loads(lines[-1].removeprefix("RESULT "))


def _cut(layer: LayerInventory, index: int, what: str, share: float) -> LayerPlan:
    if layer.mlp != "moe":
        return LayerPlan()
    if what == "experts":
        return LayerPlan(experts=tuple(range(layer.experts - 1 - index % 3 - int(share * layer.experts))))
    width, hidden = matrix_shapes(layer)[0]
    if what == "channels":
        kept = [int(share * width) - (expert + index) % 3 for expert in range(layer.experts)]
        return LayerPlan(channels=tuple(tuple(range(count)) for count in kept))
    most = int(share * min(width, hidden))
    ranks = [(most - (e + index) % 3, most - (e + index + 1) % 3, most) for e in range(layer.experts)]
    return LayerPlan(rank=LowRank(ranks=tuple(ranks)))


@pytest.mark.parametrize("case", CASES)
def test_accuracy_agrees_with_transformers(case: str, tmp_path: Path) -> None:
    name = case.partition(" ")[0]
    checkpoint = Checkpoint.open(name)
    layers = [_cut(layer, index, *CASES[case]) for index, layer in enumerate(checkpoint.inventory.layers)]
    path = apply(checkpoint, Plan.of(checkpoint.inventory, layers), tmp_path / "unequal")
    tasks = write_tasks(tmp_path / "tasks", items=ITEMS)
    model = load_model(path, dtype=torch.bfloat16)
    evaluation = evaluate(model, load_tokenizer(path), [TASK], include_path=tasks, limit=ITEMS, model_digest=case)
    (own,) = [score for score in evaluation.scores if score.metric == "acc"]
    assert isinstance(own, Score) and own.stderr is not None and own.n == ITEMS
    found = _vllm(path, tasks, tmp_path / "log")
    assert len(found["hits"]) == ITEMS
    assert 0.4 < own.value < 0.95, "a model that guesses would agree with anything that guesses"
    print(f"{case}: transformers {own.value:.3f} +- {own.stderr:.3f}, vLLM {found['value']:.3f}")
    assert abs(found["value"] - own.value) <= 2 * own.stderr
