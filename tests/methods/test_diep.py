"""DiEP: its gradient, schedule and allocation against loops, and what it finds on planted models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.checkpoint.checkpoint import Checkpoint
from bench.laws.cases import case
from bench.laws.synthetic_probe import SyntheticProbe
from bench.probing.model_probe import ModelProbe
from bench.text.corpus import Corpus
from methods.diep import DiEP, ranked_counts
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from tests.support.tiny import FAMILIES, tiny_model, tiny_tokens


class Recorder:
    """A probe that answers with a fixed gradient (or a rule) and keeps what it was asked."""

    def __init__(self, rule):
        self.rule, self.asked = rule, []

    def mask_gradient(self, masks, step):
        self.asked.append((step, {layer: mask.copy() for layer, mask in masks.items()}))
        return self.rule(masks)


def by_autograd(inventory, rule, steps, rate, ratio):
    """Return the masks by torch's own softmax, Adam and autograd."""
    moe = inventory.moe_layers
    alpha = [torch.zeros(inventory.layers[i].experts, dtype=torch.float64, requires_grad=True) for i in moe]
    beta = torch.zeros(len(moe), dtype=torch.float64, requires_grad=True)
    optimisers = [torch.optim.Adam(alpha, lr=rate), torch.optim.Adam([beta], lr=rate)]

    def masks():
        shares = beta.softmax(0) * len(moe)
        return [a.softmax(0) * len(a) * shares[n] for n, a in enumerate(alpha)]

    for step in range(steps):
        now = masks()
        _, gradient = rule({layer: m.detach().numpy() for layer, m in zip(moe, now, strict=True)})
        surrogate = sum((m * torch.from_numpy(gradient[layer])).sum() for layer, m in zip(moe, now, strict=True))
        optimiser = optimisers[0 if step % (ratio + 1) < ratio else 1]
        for group in optimiser.param_groups:
            group["lr"] = rate * 0.5 * (1 + np.cos(np.pi * step / steps))
        for other in optimisers:
            other.zero_grad()
        surrogate.backward()
        optimiser.step()
    return {layer: m.detach().numpy() for layer, m in zip(moe, masks(), strict=True)}


def test_masks_are_those_of_torch_optimisers():
    inventory = case("qwen3_moe").inventory
    rng = np.random.default_rng(3)
    slopes = {layer: rng.normal(size=16) for layer in inventory.moe_layers}

    def rule(masks):
        return 0.0, {layer: slopes[layer] + 0.5 * (mask - 1.0) for layer, mask in masks.items()}

    method = DiEP(steps=23, rate=0.05, ratio=2)
    found = method.masks(inventory, Recorder(rule))
    expected = by_autograd(inventory, rule, 23, 0.05, 2)
    for layer in inventory.moe_layers:
        np.testing.assert_allclose(found[layer], expected[layer], rtol=1e-9)


def test_the_start_is_the_uncompressed_model_and_every_step_one_batch():
    inventory = case("qwen3_moe").inventory
    probe = Recorder(lambda masks: (0.0, {layer: np.arange(16.0) for layer in masks}))
    DiEP(steps=9).masks(inventory, probe)
    assert [step for step, _ in probe.asked] == list(range(9))
    assert all(np.array_equal(mask, np.ones(16)) for mask in probe.asked[0][1].values())
    assert set(probe.asked[0][1]) == set(inventory.moe_layers)


def test_neutral_setting_asks_nothing():
    one = case("qwen3_moe")
    plan = DiEP.neutral().plan(one.inventory, Stats({}), Recorder(None))
    assert plan == Plan.identity(one.inventory)


@pytest.mark.parametrize("family", FAMILIES)
def test_counts_remove_the_lowest_scores_of_all_layers(family):
    inventory = case(family).inventory
    rng = np.random.default_rng(1)
    scores = {layer: rng.uniform(size=16) * (1 + layer) for layer in inventory.moe_layers}
    groups = inventory.router.groups
    for keep in (0.9, 0.6, 0.4):
        counts = ranked_counts(inventory, keep, scores)
        floor = inventory.router.fewest_experts(2)
        # One unit (an expert, or one of each group) at a time, the worst one of any layer that may lose another.
        left = {layer: [sorted(scores[layer].reshape(groups, -1)[g]) for g in range(groups)] for layer in scores}
        total = sum(16 // groups for _ in scores)
        for _ in range(total - int(np.floor(keep * total + 0.5))):
            allowed = [layer for layer in left if len(left[layer][0]) * groups > floor]
            worst = min(allowed, key=lambda layer: np.mean([group[0] for group in left[layer]]))
            left[worst] = [group[1:] for group in left[worst]]
        assert counts == {layer: len(left[layer][0]) * groups for layer in left}
        assert len(set(counts.values())) > 1 and min(counts.values()) >= floor


def test_refusals():
    one = case("qwen3_moe")
    probe = SyntheticProbe(one.inventory, one.stats)
    with pytest.raises(RefusedError, match=r"the smallest is 0\.125"):
        DiEP(keep=0.1).plan(one.inventory, one.stats, probe)
    with pytest.raises(RefusedError, match="depth knots"):
        DiEP(keep=(0.3, 0.7)).plan(one.inventory, one.stats, probe)
    with pytest.raises(ConfigError, match="no probe"):
        DiEP().plan(one.inventory, one.stats)


def test_experts_that_only_disturb_go_first(tmp_path):
    # Experts 1, 4 and 6 of each layer are silent in the model whose greedy answers are the corpus, and loud in the probed one.
    planted = (1, 4, 6)
    model = tiny_model("mixtral")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj[list(planted)] = 0.0
        windows = model.generate(tiny_tokens(64, 4), max_new_tokens=28, min_new_tokens=28, do_sample=False)
        for layer in model.model.layers:
            loud = torch.randn(3, *layer.mlp.experts.down_proj.shape[1:], generator=torch.Generator().manual_seed(0))
            layer.mlp.experts.down_proj[list(planted)] = loud
    model.save_pretrained(tmp_path)
    checkpoint = Checkpoint.open(tmp_path)
    probe = ModelProbe(checkpoint, Corpus.of(windows.tolist(), "its own words"), distill=0.0)
    plan = DiEP(keep=5 / 8, rate=0.05).plan(checkpoint.inventory, Stats({}), probe)
    assert [layer.experts for layer in plan.layers] == [(0, 2, 3, 5, 7)] * 3
