"""The losses of recovery are their formulas, written out token by token."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from bench.models.load import load_model
from bench.recovery.objectives import ExpertDistillation, RouterDistillation, next_token_loss
from bench.recovery.pairs import layer_pairs
from bench.recovery.write import read_plan_document
from tests.support.recoveries import PLANS, compressed
from tests.support.tiny import tiny_tokens


def test_router_distillation_is_its_formula() -> None:
    source, student = compressed("mixtral", "sparse")
    small, big, ids = load_model(student.path), load_model(source.path), tiny_tokens(2, 5)
    found = RouterDistillation(small, big, 2.0)(ids).detach()
    total = 0.0
    with torch.no_grad():
        p = (big(input_ids=ids).logits.double() / 2).softmax(-1)
        q = (small(input_ids=ids).logits.double() / 2).softmax(-1)
    for row in range(2):
        for token in range(5):
            total += sum(float(a * (a / b).log()) for a, b in zip(p[row, token], q[row, token], strict=True))
    assert abs(float(found) - 4 * total / 10) < 1e-5 and total > 0.01
    assert float(RouterDistillation(big, big, 1.0)(ids).detach()) == 0.0


@pytest.mark.parametrize("family", ["mixtral", "deepseek_v2"])
def test_expert_distillation_is_its_formula(family: str) -> None:
    """Expert by expert and token by token, on a layer with merged, kept and constant experts behind a map."""
    source, student = compressed(family, "mapped")
    small, big, ids = load_model(student.path), load_model(source.path), tiny_tokens(2, 7)
    pairs = layer_pairs(small, student, big, source, read_plan_document(student))
    inputs: list[tuple[torch.Tensor, torch.Tensor]] = []
    modules = [layer.mlp.experts for layer in small.model.layers]
    handles = [m.register_forward_pre_hook(lambda _, a: inputs.append((a[0].detach(), a[1]))) for m in modules]
    with torch.no_grad():
        logits = small(input_ids=ids, use_cache=False).logits
    for handle in handles:
        handle.remove()
    assert len(pairs) == len(inputs) == 2
    expected = 0.0
    for layer, origin, (hidden, chosen) in zip(range(2), (1, 2), inputs, strict=True):
        plan = PLANS["mapped"][origin]
        places = plan.expert_map or range(len(plan.experts or ()))
        for place, expert in enumerate(plan.experts or ()):
            mine, theirs = (
                _matrices(m.model.layers[i].mlp.experts, e)
                for m, i, e in ((small, layer, place), (big, origin, expert))
            )
            errors = [
                float((_expert(mine, hidden[n]) - _expert(theirs, hidden[n])).square().mean())
                for n in range(len(hidden))
                for k in range(chosen.shape[1])
                if places[int(chosen[n, k])] == place
            ]
            expected += sum(errors) / len(errors) if errors else 0.0
    language = float(next_token_loss(logits, ids))
    assert expected > 1e-4
    assert math.isclose(
        float(ExpertDistillation(small, pairs, 3.0)(ids).detach()), language + 3.0 * expected, rel_tol=1e-5
    )
    balanced = ExpertDistillation(small, pairs, None)
    assert math.isclose(float(balanced(ids).detach()), 2 * language, rel_tol=1e-5)
    assert balanced.balance is not None and math.isclose(balanced.balance, language / expected, rel_tol=1e-5)


def _matrices(experts: Any, expert: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    gate, up = experts.gate_up_proj[expert].detach().chunk(2)
    return gate, up, experts.down_proj[expert].detach()


def _expert(matrices: tuple[torch.Tensor, torch.Tensor, torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    gate, up, down = matrices
    return down @ (torch.nn.functional.silu(gate @ x) * (up @ x))


def test_errors_of_experts_move_experts_alone() -> None:
    source, student = compressed("mixtral", "mapped")
    small, big, ids = load_model(student.path), load_model(source.path).requires_grad_(False), tiny_tokens(2, 7)
    pairs = layer_pairs(small, student, big, source, read_plan_document(student))
    gradients = []
    for balance in (0.0, 1.0):
        small.zero_grad()
        ExpertDistillation(small, pairs, balance)(ids).backward()
        gradients.append({n: w.grad.clone() for n, w in small.named_parameters() if w.grad is not None})
    moved = {n for n, g in gradients[1].items() if not torch.equal(g, gradients[0][n])}
    assert moved and all(".experts." in name for name in moved)
