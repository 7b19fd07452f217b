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
from sweeps.budget import Budget, Limits
from sweeps.knob_planner import KnobPlanner
from sweeps.planner import Drawn
from sweeps.space.dimension import Knots
from sweeps.space.step import SearchStep
from tests.support.inventories import toy_inventory


def stats_for(inventory: Inventory, seed: int = 0) -> Stats:
    rng = np.random.default_rng(seed)
    per_layer = [None if layer.mlp != "moe" else rng.random((layer.experts, 3, 3)) + 0.1 for layer in inventory.layers]
    return Stats({"gate_norm_moment": tuple(per_layer)})


def planner(inventory: Inventory, budget: Budget | None, method: str = "reap") -> KnobPlanner:
    budgets = () if budget is None else (budget,)
    step = SearchStep(method=method, space={"keep": Knots(knots=1, low=0.1, high=1.0)})
    return KnobPlanner((step,), inventory, stats_for(inventory), Limits(inventory, budgets))


def drawn(plans: KnobPlanner, keep: float | tuple[float, ...]) -> Drawn:
    """Return what knots lead to, whatever their number."""
    knots = keep if isinstance(keep, tuple) else (keep,)
    step = SearchStep(method=plans.steps[0].method, space={"keep": Knots(knots=len(knots), low=0.01, high=1.0)})
    of_knots = KnobPlanner((step,), plans.inventory, plans.stats, plans.limits)
    return of_knots.drawn({f"keep.{index}": share for index, share in enumerate(knots)})


@pytest.mark.parametrize("share", [0.3, 0.42, 0.5, 0.77, 1.0])
@pytest.mark.parametrize("of", ["experts", "bytes", "parameters", "flops"])
def test_every_draw_lands_on_the_budget_within_one_expert(of: str, share: float) -> None:
    inventory = toy_inventory(experts=16, moe_layers=5)
    budget = Budget.model_validate({"of": of, "keep": share})
    plans = planner(inventory, budget)
    limits = plans.limits
    smaller = limits.sizes(method_class("reap").configured({"keep": 2 / 16}).plan(inventory, plans.stats))[of]
    one = (limits.source[of] - smaller) / (14 * 5)
    rng = np.random.default_rng(1)
    if smaller > limits.limits[of]:
        with pytest.raises(RefusedError, match="cannot be brought to"):
            drawn(plans, 0.5)
        return
    for _ in range(6):
        keep = tuple(float(x) for x in rng.uniform(0.05, 1.0, int(rng.integers(1, 5))))
        excess = drawn(plans, keep).sizes[of] - limits.limits[of]
        assert excess <= 0
        assert excess > -one * 1.001 - 1e-9, "a larger plan would have met the budget too"


def test_projection_keeps_the_order_of_the_knots_and_their_differences() -> None:
    inventory = toy_inventory(experts=32, moe_layers=4)
    found = drawn(planner(inventory, Budget(of="experts", keep=0.5)), (0.7, 0.9))
    first, last = found.knobs["keep"]
    assert last - first == pytest.approx(0.2)
    assert [len(layer.experts or range(32)) for layer in found.plan.layers[1:]] == [13, 15, 17, 19]


def test_a_knot_below_what_the_router_needs_is_lifted() -> None:
    inventory = toy_inventory(experts=8, moe_layers=2)
    plan = drawn(planner(inventory, Budget(of="experts", keep=0.5)), (0.01, 0.99)).plan
    assert [len(layer.experts or ()) for layer in plan.layers[1:]] == [2, 6]


def test_groups_are_respected() -> None:
    inventory = toy_inventory(experts=8, moe_layers=3, groups=2)
    plans = planner(inventory, Budget(of="experts", keep=0.6))
    plan = drawn(plans, (0.3, 0.8)).plan
    counts = [len(layer.experts or range(8)) for layer in plan.layers[1:]]
    assert all(count % 2 == 0 for count in counts) and 0.6 * 24 - 2 < sum(counts) <= 0.6 * 24


def test_a_budget_of_everything_changes_nothing() -> None:
    inventory = toy_inventory()
    plan = drawn(planner(inventory, Budget(of="bytes", keep=1.0)), 0.25).plan
    assert plan.stages == frozenset()


def test_without_projection_the_knobs_stay() -> None:
    inventory = toy_inventory(experts=8)
    plans = planner(inventory, Budget(of="experts", keep=0.5, how="refuse"))
    found = drawn(plans, 0.75)
    assert found.knobs["keep"] == 0.75 and plans.limits.excess(found.sizes) == (12 - 8) / 8
    assert planner(inventory, None).limits.excess(found.sizes) < 0
    with pytest.raises(RefusedError, match=r"experts of the result is 0\.75 of the source's, above the budget of 0\.5"):
        plans.limits.check(found.sizes)


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
        assert plans.limits.sizes(plan) == asdict(cost(plan, inventory))


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
            assert plans.limits.sizes(plan) == asdict(cost(plan, inventory))
    assert (
        len(
            {
                plans.limits.sizes(Plan.of(inventory, [LayerPlan(), layer, LayerPlan()]))["parameters"]
                for layer in inside
            }
        )
        == 4
    )


def test_several_budgets_are_met_together() -> None:
    inventory = toy_inventory(experts=16, moe_layers=5)
    both = Limits(inventory, (Budget(of="experts", keep=0.5), Budget(of="bytes", keep=0.9)))
    one = Limits(inventory, (Budget(of="experts", keep=0.5),))
    step = SearchStep(method="reap", space={"keep": Knots(knots=1, low=0.1, high=1.0)})
    sizes = [
        KnobPlanner((step,), inventory, stats_for(inventory), limits).drawn({"keep.0": 0.9}).sizes
        for limits in (both, one)
    ]
    assert both.excess(sizes[0]) <= 0 < both.excess(sizes[1]) or sizes[0] == sizes[1]
    assert str(both) == "0.5 of the source's experts and 0.9 of the source's bytes"


def test_a_method_of_whole_experts_is_planned_once(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory = toy_inventory(experts=16, moe_layers=5)
    plans = planner(inventory, Budget(of="experts", keep=0.42))
    kind = method_class("reap")
    planned = []
    original = kind.plan
    monkeypatch.setattr(kind, "plan", lambda self, *rest: planned.append(self.keep) or original(self, *rest))
    quick = drawn(plans, (0.3, 0.9)).plan
    assert len(planned) == 1
    monkeypatch.setattr(KnobPlanner, "_by_counts", lambda *_: None)
    assert drawn(plans, (0.3, 0.9)).plan == quick and len(planned) > 20
