"""Projection onto a budget."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from methods.framework.cost import cost
from methods.framework.errors import RefusedError
from methods.framework.inside import LowRank
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.registry import method_class
from sweeps.budget import Budget, Planner
from tests.support.inventories import toy_inventory


def stats_for(inventory: Inventory, seed: int = 0) -> Stats:
    rng = np.random.default_rng(seed)
    per_layer = [None if layer.mlp != "moe" else rng.random((layer.experts, 3, 3)) + 0.1 for layer in inventory.layers]
    return Stats({"gate_norm_moment": tuple(per_layer)})


def planner(inventory: Inventory, budget: Budget | None, method: str = "reap") -> Planner:
    return Planner(method_class(method), inventory, stats_for(inventory), budget)


@pytest.mark.parametrize("share", [0.3, 0.42, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("of", ["experts", "bytes", "parameters", "flops"])
def test_every_draw_lands_on_the_budget_within_one_expert(of: str, share: float) -> None:
    inventory = toy_inventory(experts=16, moe_layers=5)
    budget = Budget.model_validate({"of": of, "keep": share})
    plans = planner(inventory, budget)
    smaller = plans.cost(plans.method_class.configured({"keep": 2 / 16}).plan(inventory, plans.stats))[of]
    one = (plans.source[of] - smaller) / (14 * 5)
    rng = np.random.default_rng(1)
    if smaller > plans.limit:  # type: ignore[operator]  # a limit exists, since there is a budget
        with pytest.raises(RefusedError, match="cannot be brought to"):
            plans.plan({"keep": 0.5})
        return
    for _ in range(6):
        keep = tuple(float(x) for x in rng.uniform(0.05, 1.0, int(rng.integers(1, 5))))
        _, plan = plans.plan({"keep": keep})
        excess = plans.excess(plan)
        assert excess <= 0
        assert excess > -one * 1.001 - 1e-9, "a larger plan would have met the budget too"


def test_projection_keeps_the_order_of_the_knots_and_their_differences() -> None:
    inventory = toy_inventory(experts=32, moe_layers=4)
    method, plan = planner(inventory, Budget(of="experts", keep=0.5)).plan({"keep": (0.7, 0.9)})
    first, last = method.keep  # type: ignore[misc]  # two knots went in
    assert last - first == pytest.approx(0.2)
    assert [len(layer.experts or range(32)) for layer in plan.layers[1:]] == [13, 15, 17, 19]


def test_a_knot_below_what_the_router_needs_is_lifted() -> None:
    inventory = toy_inventory(experts=8, moe_layers=2)
    _, plan = planner(inventory, Budget(of="experts", keep=0.5)).plan({"keep": (0.01, 0.99)})
    assert [len(layer.experts or ()) for layer in plan.layers[1:]] == [2, 6]


def test_groups_are_respected() -> None:
    inventory = toy_inventory(experts=8, moe_layers=3, groups=2)
    plans = planner(inventory, Budget(of="experts", keep=0.6))
    _, plan = plans.plan({"keep": (0.3, 0.8)})
    counts = [len(layer.experts or range(8)) for layer in plan.layers[1:]]
    assert all(count % 2 == 0 for count in counts) and 0.6 * 24 - 2 < sum(counts) <= 0.6 * 24


def test_a_budget_of_everything_changes_nothing() -> None:
    inventory = toy_inventory()
    _, plan = planner(inventory, Budget(of="bytes", keep=1.0)).plan({"keep": 0.25})
    assert plan.stages == frozenset()


def test_without_projection_the_knobs_stay() -> None:
    inventory = toy_inventory(experts=8)
    plans = planner(inventory, Budget(of="experts", keep=0.5, how="refuse"))
    method, plan = plans.plan({"keep": 0.75})
    assert method.keep == 0.75 and plans.excess(plan) == 12 - 8
    assert planner(inventory, None).excess(plan) < 0


def test_plans_of_equally_many_experts_have_costs_of_their_own() -> None:
    inventory = toy_inventory(experts=8, moe_layers=2)
    plans = planner(inventory, None)
    merged = Merge(into=0, members=(0, 1), weights=(0.5, 0.5))
    kept = tuple(index for index in range(8) if index != 1)
    layers = (
        LayerPlan(experts=kept),
        LayerPlan(experts=kept, top_k=1),
        LayerPlan(experts=kept, merges=(merged,), router="map"),
        LayerPlan(experts=kept, constants=(1,), router="map"),
    )
    for layer in layers:
        plan = Plan.of(inventory, [LayerPlan(), layer, layer])
        assert plans.cost(plan) == asdict(cost(plan, inventory))


def test_plans_that_differ_inside_experts_have_costs_of_their_own() -> None:
    """Channels, ranks and bits change sizes while every expert stays."""
    inventory = toy_inventory()
    plans = planner(inventory, None)
    inside = (
        LayerPlan(channels=((0, 1),) * 4),
        LayerPlan(channels=((0,),) * 4),
        LayerPlan(rank=LowRank(ranks=((1, 1, 1),) * 4)),
        LayerPlan(rank=LowRank(ranks=((1, 0, 0),) * 4)),
    )
    for layer in inside:
        plan = Plan.of(inventory, [LayerPlan(), layer, LayerPlan()])
        for _ in range(2):
            assert plans.cost(plan) == asdict(cost(plan, inventory))
    assert (
        len({plans.cost(Plan.of(inventory, [LayerPlan(), layer, LayerPlan()]))["parameters"] for layer in inside}) == 4
    )
