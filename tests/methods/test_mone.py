"""MoNE: scores and constants, against loops over tokens and by hand."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pytest

from methods import registry
from methods.framework.errors import RefusedError
from methods.framework.plan import Plan
from methods.mone import MoNE
from tests.support.inventories import toy_inventory
from tests.support.token_layers import TokenLayer, moments, stats_from, stats_of

Score = Literal["fusion", "variance", "routing"]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("score", ["fusion", "variance", "routing"])
@pytest.mark.parametrize("scope", ["layer", "model"])
def test_equals_loops_over_tokens(seed: int, score: Score, scope: str) -> None:
    layers = [TokenLayer.drawn(10 * seed + i, experts=8) for i in range(2)]
    method = registry.method("mone", keep=0.375, score=score, scope=scope)
    plan = method.plan(toy_inventory(experts=8), stats_of(*layers))
    scores = {}
    for at, layer in enumerate(layers):
        for j in range(8):
            seen = np.array([layer.outputs[t, j] for t in layer.routed(j)])
            spread = float(np.linalg.norm(np.std(seen, axis=0, ddof=1))) if len(seen) > 1 else 0.0
            routing = float(layer.gates()[:, j].mean())
            scores[at, j] = {"fusion": spread * routing, "variance": spread, "routing": routing}[score]
    for at in range(2):
        found = MoNE(score=score).scores(stats_of(*layers), at + 1)
        assert found == pytest.approx([scores[at, j] for j in range(8)])
    best = {(at, int(np.argmax([scores[at, j] for j in range(8)]))) for at in range(2)}
    if scope == "model":
        others = sorted(scores.keys() - best, key=lambda pair: -scores[pair])
        kept = best | set(others[: 6 - 2])
    else:
        kept = {pair for at in range(2) for pair in sorted(((at, j) for j in range(8)), key=lambda p: -scores[p])[:3]}
    for at, decided in enumerate(plan.layers[1:]):
        experts = tuple(sorted(j for where, j in kept if where == at))
        assert decided.experts == experts and decided.router == "map" and not decided.merges
        assert decided.constants == tuple(j for j in range(8) if j not in experts)


def plan_of(routing: Sequence[Sequence[float]], variance: Sequence[Sequence[float]], **knobs: object) -> Plan:
    """Return the plan for two layers where each expert saw ten tokens, with these sums of gates and variances."""
    stats = stats_from(
        gate_norm_moment=[moments([10.0] * 4, gate=each) for each in routing],
        routed_output_variance=[np.repeat(np.array(each, dtype=float)[:, None], 4, axis=1) for each in variance],
    )
    return registry.method("mone", **knobs).plan(toy_inventory(), stats)


def test_both_factors_count() -> None:
    routing, variance = [[8, 1, 4, 4]] * 2, [[1, 81, 9, 4]] * 2
    assert plan_of(routing, variance).layers[1].experts == (1, 2), "sqrt(var) x routing: 8, 9, 12, 8"
    assert plan_of(routing, variance, score="routing").layers[1].experts == (0, 2)
    assert plan_of(routing, variance, score="variance").layers[1].experts == (1, 2)


def test_the_plan_names_the_moments_it_needs() -> None:
    plan = plan_of([[1, 2, 3, 4]] * 2, [[1, 1, 1, 1]] * 2)
    assert plan.moments == {"routed_output_mean"}
    assert registry.method("mone", score="routing").needs == {"gate_norm_moment"}


def test_ties_do_not_change_the_budget_and_every_layer_keeps_one() -> None:
    ties = plan_of([[1] * 4, [1] * 4], [[1] * 4, [1] * 4], scope="model", keep=0.625)
    assert [layer.experts for layer in ties.layers[1:]] == [None, (0,)], "earlier layer first; layer 1 keeps all four"
    deep = plan_of([[1] * 4, [100] * 4], [[1] * 4, [1] * 4], scope="model", keep=0.5)
    assert [layer.experts for layer in deep.layers[1:]] == [(0,), (0, 1, 2)]


def test_experts_without_or_with_one_token_go_first() -> None:
    hits = np.array([5.0, 0.0, 1.0, 5.0])
    stats = stats_from(
        gate_norm_moment=[moments(hits.tolist())] * 2, routed_output_variance=[np.outer([2, 0, 0, 1], np.ones(4))] * 2
    )
    plan = registry.method("mone").plan(toy_inventory(), stats)
    assert plan.layers[1].constants == (1, 2)


def test_fewer_than_top_k_may_stay_and_refusals_say_what_is_possible() -> None:
    routing, variance = [[4, 3, 2, 1]] * 2, [[1] * 4] * 2
    assert plan_of(routing, variance, keep=0.25).layers[1].experts == (0,)
    with pytest.raises(RefusedError, match="depth knots"):
        plan_of(routing, variance, keep=(0.5, 0.75), scope="model")
    with pytest.raises(RefusedError, match=r"smallest keep is 0\.25"):
        plan_of(routing, variance, keep=0.125, scope="model")


@pytest.mark.parametrize("seed", range(3))
def test_the_mean_is_a_better_constant_than_nothing(seed: int) -> None:
    layer = TokenLayer.drawn(seed)
    mean = layer.statistics()["routed_output_mean"]
    for j in range(4):
        seen = np.array([layer.outputs[t, j] + j for t in layer.routed(j)])
        assert ((seen - (mean[j] + j)) ** 2).mean() <= (seen**2).mean()
