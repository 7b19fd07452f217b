"""What vLLM serves, by its own classes or by our plug-in, gives the same tokens and log-probabilities as transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.families.family import family_named
from bench.laws.served import TOKENS, covering, greedy_tokens, write
from bench.models.load import load_model
from bench.serving.processes.client import Zygote
from bench.timing.offline import TimingSession
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

pytestmark = pytest.mark.e2e

PROMPTS = tiny_tokens(3, 12, seed=5).tolist()


def log_probabilities(path: Path) -> list[list[float]]:
    """Return the log-probability that transformers gives to every token of each prompt but its first."""
    with torch.no_grad():
        logits_BTV = load_model(path)(torch.tensor(PROMPTS)).logits.log_softmax(-1)
    return [
        [float(logits_BTV[row, i, token]) for i, token in enumerate(prompt[1:])] for row, prompt in enumerate(PROMPTS)
    ]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Checkpoint:
    folder = tmp_path_factory.mktemp(request.param) / "source"
    return Checkpoint.open(tiny_checkpoint(request.param, folder, **family_named(request.param).file.published))


@pytest.mark.parametrize(("source", "kind"), sorted(covering(FAMILIES)), indirect=["source"])
def test_the_plugin_agrees_with_transformers(
    source: Checkpoint, kind: str, session: TimingSession, tmp_path: Path
) -> None:
    """Which kinds are tried with which families is in ``covering``; ``python -m bench.laws.served`` tries all with all."""
    path = write(source, kind, tmp_path / kind)
    expected = log_probabilities(path)
    tokens, found = session.answers(path, PROMPTS, TOKENS)
    assert tokens == greedy_tokens(path, PROMPTS)
    gap = max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True))
    assert gap < 1e-5, f"prompt log-probabilities differ by {gap:.2g}"
    if kind != "base":
        assert expected != log_probabilities(source.path), "it should not just repeat the original"


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("afmoe", "counts"),
        ("ernie4_5_moe", "base"),
        ("granitemoe", "sublayer"),
        ("minimax_m2", "constants"),
        ("phimoe", "mapped"),
        ("glm4_moe_lite", "channels"),
    ],
    indirect=["source"],
)
def test_other_families_agree(source: Checkpoint, kind: str, session: TimingSession, tmp_path: Path) -> None:
    """Each with a kind that runs code of its own; ``python -m bench.laws.served_families`` tries more with all."""
    path = write(source, kind, tmp_path / kind)
    assert session.greedy(path, PROMPTS, TOKENS) == greedy_tokens(path, PROMPTS)


@pytest.mark.parametrize("source", FAMILIES, indirect=True)
def test_what_stock_classes_can_load_agrees(source: Checkpoint, session: TimingSession, tmp_path: Path) -> None:
    """Experts 1, 2, 5 and 6 of each MoE layer stay, and the last decoder layer goes."""
    layers = [LayerPlan(experts=(1, 2, 5, 6)) if one.mlp == "moe" else LayerPlan() for one in source.inventory.layers]
    plan = Plan.of(source.inventory, [*layers[:-1], LayerPlan(drop="block")])
    path = apply(source, plan, tmp_path / "compressed")
    expected = greedy_tokens(path, PROMPTS)
    assert session.greedy(path, PROMPTS, TOKENS) == expected
    assert greedy_tokens(source.path, PROMPTS) != expected, "the compressed model should not just repeat the original"


@pytest.mark.parametrize("source", ["qwen2_moe"], indirect=True)
def test_two_devices_hold_half_the_channels_each(source: Checkpoint, zygote: Zygote, tmp_path: Path) -> None:
    """Factors beside a base some of whose columns are not stored, and a shared expert, whose sum both devices reduce."""
    path = write(source, "shared_base", tmp_path / "served")
    worker = zygote.worker("two-devices")
    try:
        found = worker.ask("two_devices", 300.0, path=str(path), prompts=PROMPTS, tokens=TOKENS)
    finally:
        worker.close()
    assert found == greedy_tokens(path, PROMPTS)
