"""Law 10, second half: what stock vLLM can load gives the same greedy tokens there as in transformers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.timing.offline import TimingSession
from bench.timing.protocol import TimingProtocol
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

pytestmark = pytest.mark.e2e

TOKENS = 16


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TimingSession]:
    protocol = TimingProtocol(dtype="float32", threads=1)
    with TimingSession(protocol, logs=tmp_path_factory.mktemp("logs")) as opened:
        yield opened


def uniform_and_shorter(checkpoint: Checkpoint) -> Plan:
    """Return a plan that keeps experts 1, 2, 5 and 6 in each MoE layer and drops the last decoder layer."""
    layers = [
        LayerPlan(experts=(1, 2, 5, 6)) if layer.mlp == "moe" else LayerPlan() for layer in checkpoint.inventory.layers
    ]
    return Plan.of(checkpoint.inventory, [*layers[:-1], LayerPlan(drop="block")])


def greedy(path: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Return the greedy tokens of transformers, one prompt at a time, without cache."""
    model = load_model(path)
    answers = []
    for prompt in prompts:
        ids = list(prompt)
        for _ in range(TOKENS):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    return answers


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_agree(family: str, session: TimingSession, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_checkpoint(family, tmp_path / "source"))
    path = apply(checkpoint, uniform_and_shorter(checkpoint), tmp_path / "compressed")
    prompts = tiny_tokens(3, 12, seed=5).tolist()
    expected = greedy(path, prompts)
    assert session.greedy(path, prompts, TOKENS) == expected
    assert greedy(checkpoint.path, prompts) != expected, "the compressed model should not just repeat the original"
