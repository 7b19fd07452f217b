"""In bfloat16, models that need our plug-in score in lm-eval's vLLM backend what they score in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.evaluation.evaluate import evaluate
from bench.models.load import load_model, load_tokenizer
from bench.pocket import write_tasks
from bench.records.record import Score
from bench.serving.processes.client import Zygote
from methods.framework.inside import LowRank
from methods.framework.inside_fit import matrix_shapes
from methods.framework.inventory import LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan

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
def test_accuracy_agrees_with_transformers(case: str, zygote: Zygote, tmp_path: Path) -> None:
    name = case.partition(" ")[0]
    checkpoint = Checkpoint.open(name)
    layers = [_cut(layer, index, *CASES[case]) for index, layer in enumerate(checkpoint.inventory.layers)]
    path = apply(checkpoint, Plan.of(checkpoint.inventory, layers), tmp_path / "unequal")
    tasks = write_tasks(tmp_path / "tasks", items=ITEMS)
    model = load_model(path, dtype=torch.bfloat16)
    evaluation = evaluate(model, load_tokenizer(path), [TASK], include_path=tasks, limit=ITEMS, model_digest=case)
    (own,) = [score for score in evaluation.scores if score.metric == "acc"]
    assert isinstance(own, Score) and own.stderr is not None and own.n == ITEMS
    worker = zygote.worker("lm-eval")
    try:
        found = worker.ask("accuracy", 600.0, path=str(path), tasks=str(tasks), task=TASK, limit=ITEMS)
    finally:
        worker.close()
    assert len(found["hits"]) == ITEMS
    assert 0.4 < own.value < 0.95, "a model that guesses would agree with anything that guesses"
    print(f"{case}: transformers {own.value:.3f} +- {own.stderr:.3f}, vLLM {found['value']:.3f}")
    assert abs(found["value"] - own.value) <= 2 * own.stderr
