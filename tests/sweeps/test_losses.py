"""Losses against plain computations on the whole logits."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import PreTrainedModel

import sweeps.losses
from sweeps.losses import divergence, final_states, nll, overlap
from tests.support.tiny import tiny_model, tiny_tokens


@pytest.fixture(scope="module")
def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    base, other = tiny_model("olmoe"), tiny_model("olmoe")
    with torch.no_grad():
        for name, parameter in other.named_parameters():
            if name.endswith("experts.down_proj"):
                parameter[::2] = 0.0
    return base, other


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("logits_at_once", [160 * 5, 1 << 24])
def test_nll_is_the_mean_over_tokens(
    models: tuple[PreTrainedModel, ...], batch_size: int, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.losses, "_LOGITS", logits_at_once)
    windows = tiny_tokens(4, 11)
    with torch.no_grad():
        probabilities = models[0](windows).logits.double().softmax(-1)
    expected = [
        sum(-math.log(probabilities[n, s, windows[n, s + 1]].item()) for s in range(10)) / 10
        for n in range(len(windows))
    ]
    assert nll(models[0], windows, batch_size) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("logits_at_once", [160 * 5, 1 << 24])
def test_divergence_is_the_mean_kl_from_the_base(
    models: tuple[PreTrainedModel, ...], logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.losses, "_LOGITS", logits_at_once)
    base, other = models
    windows = tiny_tokens(5, 7)
    with torch.no_grad():
        p, q = (model(windows).logits.double().softmax(-1) for model in models)
    expected = (p * (p.log() - q.log())).sum(-1).mean(-1).numpy()
    hidden = final_states(base, windows, 5)
    assert divergence(other, windows, hidden, 2) == pytest.approx(expected, rel=1e-4)
    # In float32 the base's states, computed in batches of another size, differ in the last bit.
    assert divergence(base, windows, hidden, 2).mean() == pytest.approx(0.0, abs=1e-7)
    assert expected.min() > 1e-3


def test_overlap_is_the_mean_of_the_smaller_probabilities(models: tuple[PreTrainedModel, ...]) -> None:
    base, other = models
    windows = tiny_tokens(3, 7)
    with torch.no_grad():
        p, q = (model(windows).logits.double().softmax(-1) for model in models)
    hidden = final_states(base, windows, 3)
    assert overlap(other, windows, hidden, 2) == pytest.approx(torch.minimum(p, q).sum(-1).mean(-1).numpy(), rel=1e-5)
    assert overlap(base, windows, hidden, 2) == pytest.approx(1.0, abs=1e-6)
    assert overlap(other, windows, hidden, 2).max() < 0.99
