"""Removal losses: the kernels against plain Python, the statistic against layers that are run again without an expert."""

from __future__ import annotations

import copy
import itertools

import numpy as np
import pytest
import torch

from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Effort
from bench.calibration.sums.removal import changes_by_routing_again, needs_all_experts, next_expert, removals
from bench.checkpoint.checkpoint import Checkpoint
from methods.framework.inventory import Router
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.kernels.routing import route
from tests.support.calibration_reference import expert_reference
from tests.support.masking import mask
from tests.support.routing_reference import gates
from tests.support.streamed_pass import RAGGED, plain_model
from tests.support.tiny import FAMILIES, tiny_checkpoint

ROUTERS = [
    Router(score=score, renormalise=renormalise, scale=scale, correction_bias=corrected, eps=eps)
    for score, renormalise, (scale, eps), corrected in itertools.product(
        ("softmax", "sigmoid"), (False, True), ((1.0, 0.0), (2.5, 0.3)), (False, True)
    )
]


def dense(weights, count):
    return np.array([weights.get(expert, 0.0) for expert in range(count)])


def expected_changes(logits, router, top_k, correction):
    """Return the change of every weight for every removal, (N, E, E)."""
    rows = []
    for z in logits.tolist():
        count = len(z)
        before = dense(gates(z, router, top_k, correction), count)
        without = [gates(z, router, min(top_k, count - 1), correction, removed=j) for j in range(count)]
        rows.append([dense(weights, count) - before for weights in without])
    return np.array(rows)


def our_changes(logits, router, top_k, correction):
    """Return the same from the candidates alone."""
    indices = route(logits, router, top_k, correction).indices_TK
    slots = torch.cat([indices, next_expert(logits, indices, router, correction)], dim=1)
    effect = removals(logits, slots, top_k, router)
    before = route(logits, router, top_k, correction)
    weights = torch.zeros_like(logits).scatter_(1, before.indices_TK, before.weights_TK)
    growth = torch.zeros_like(logits) if effect.growth_NE is None else effect.growth_NE
    changes = growth.unsqueeze(2) * weights.unsqueeze(1)
    spread = torch.zeros(len(logits), top_k, logits.shape[1], dtype=torch.float64)
    spread.scatter_(2, slots.unsqueeze(1).expand(-1, top_k, -1), effect.change_NKS)
    changes.scatter_(1, indices.unsqueeze(2).expand(-1, -1, logits.shape[1]), spread)
    return changes.numpy()


@pytest.mark.parametrize("router", ROUTERS, ids=str)
def test_changes_of_weights_equal_plain_python(router):
    generator = torch.Generator().manual_seed(0)
    correction = torch.randn(6, generator=generator, dtype=torch.float64) * 0.3 if router.correction_bias else None
    listed = None if correction is None else correction.tolist()
    for experts, top_k in ((6, 2), (6, 1), (6, 5), (6, 6)):
        logits = torch.randn(20, experts, generator=generator, dtype=torch.float64) * 2
        expected = expected_changes(logits, router, top_k, listed)
        if not needs_all_experts(router):
            np.testing.assert_allclose(our_changes(logits, router, top_k, correction), expected, rtol=1e-9, atol=1e-12)
        again = changes_by_routing_again(logits, top_k, router, correction)
        if top_k < experts:
            np.testing.assert_allclose(again, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("renormalise", [False, True])
def test_an_expert_that_takes_all_probability_can_be_removed(renormalise):
    router = Router(renormalise=renormalise)
    logits = torch.tensor(
        [[60.0, 1.0, 0.5, 0.0], [300.0, 0.0, -1.0, 2.0], [-800.0, 0.0, -1.0, 2.0]], dtype=torch.float64
    )
    expected = expected_changes(logits, router, 2, None)
    np.testing.assert_allclose(our_changes(logits, router, 2, None), expected, rtol=1e-9, atol=1e-12)


def test_the_only_expert():
    assert our_changes(torch.tensor([[0.3], [2.0]], dtype=torch.float64), Router(), 1, None).tolist() == [[[-1.0]]] * 2


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("rank", ["max", "top2_sum"])
def test_groups_are_chosen_again(score, rank):
    router = Router(score=score, groups=3, groups_kept=2, group_score=rank, renormalise=True, correction_bias=True)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(40, 9, generator=generator, dtype=torch.float64) * 2
    correction = torch.randn(9, generator=generator, dtype=torch.float64) * 0.2
    expected = expected_changes(logits, router, 3, correction.tolist())
    np.testing.assert_allclose(changes_by_routing_again(logits, 3, router, correction), expected, rtol=1e-9, atol=1e-12)
    ungrouped = Router(score=score, renormalise=True, correction_bias=True)
    assert not np.allclose(expected, expected_changes(logits, ungrouped, 3, correction.tolist())), "groups do nothing"


def test_a_softmax_with_a_correction_can_bring_in_another_expert_than_the_next():
    """Without expert 0 the others' scores grow tenfold, while the correction of expert 2 stays what it is."""
    router = Router(correction_bias=True)
    logits = torch.tensor([[0.9, 0.06, 0.03, 0.01]], dtype=torch.float64).log()
    correction = torch.tensor([0.0, 0.0, 0.04, 0.0], dtype=torch.float64)
    assert needs_all_experts(router)
    assert next_expert(logits, torch.tensor([[0]]), router, correction).tolist() == [[2]]
    (change,) = changes_by_routing_again(logits, 1, router, correction)[:, 0].tolist()
    assert change == pytest.approx([-0.9, 0.6, 0.0, 0.0])


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_equal_layers_run_again_without_the_expert(tiny, family):
    """The model of transformers with the logit of one expert at minus infinity, for every expert of the last layer."""
    checkpoint = tiny(family)
    stats = calibrate(checkpoint, RAGGED, {"removal_loss", "routed_norm"}, effort=Effort(output_bytes=64 * 4 * 3 * 17))
    inputs, outputs = [], []

    def hook(module, args, output):
        inputs.append(args[0])
        outputs.append(output)

    model = plain_model(checkpoint)
    plain = copy.deepcopy(model)
    model.model.layers[2].mlp.register_forward_hook(hook)
    for window in RAGGED.windows:
        with torch.no_grad():
            model.model(torch.tensor([window]), use_cache=False)
    losses = np.zeros(8)
    for expert in range(8):
        rest = LayerPlan(experts=tuple(e for e in range(8) if e != expert))
        plan = Plan(family=checkpoint.inventory.family, layers=(LayerPlan(), LayerPlan(), rest))
        without = mask(copy.deepcopy(plain), plan).model.layers[2].mlp
        with torch.no_grad():
            losses[expert] = sum((without(x) - y).double().norm().item() for x, y in zip(inputs, outputs, strict=True))
    assert losses.min() > 0.01
    np.testing.assert_allclose(stats.layer("removal_loss", 2), losses, rtol=2e-5)


def test_losses_do_not_depend_on_what_else_is_measured(tiny):
    for family in ("olmoe", "deepseek_v3"):
        checkpoint = tiny(family)
        alone = calibrate(checkpoint, RAGGED, {"removal_loss"}, dtype="float64")
        for tokens in (5, 63):
            together = calibrate(
                checkpoint, RAGGED, {"removal_loss", "token_gram"}, dtype="float64", sampled_tokens=tokens
            )
            for layer in checkpoint.inventory.moe_layers:
                np.testing.assert_allclose(
                    together.layer("removal_loss", layer), alone.layer("removal_loss", layer), rtol=1e-9
                )


@pytest.mark.parametrize(
    ("family", "overrides", "top_k"),
    [
        ("mixtral", {"num_local_experts": 2}, 2),
        ("qwen2_moe", {"num_experts": 3, "num_experts_per_tok": 3}, 3),
        ("deepseek_v2", {"n_group": 4, "topk_group": 2, "topk_method": "group_limited_greedy"}, 2),
    ],
)
def test_all_experts_chosen_and_groups_of_a_softmax(family, overrides, top_k, tmp_path):
    checkpoint = Checkpoint.open(tiny_checkpoint(family, tmp_path, **overrides))
    windows = sorted(RAGGED.windows, key=len)
    expected = expert_reference(plain_model(checkpoint), windows, checkpoint.inventory.router, top_k, 4, 4)
    stats = calibrate(checkpoint, RAGGED, {"removal_loss", "residual_gate_norm"})
    for name in ("removal_loss", "residual_gate_norm"):
        for layer, value in expected[name].items():
            np.testing.assert_allclose(stats.layer(name, layer), value, rtol=2e-5, err_msg=f"{name} of layer {layer}")
