"""Plans: normal form, canonical JSON, digest, validation; transfers and cost on an inventory written by hand."""

import json

import pytest
from pydantic import ValidationError

from methods.cost import cost, cost_of, ratios
from methods.errors import PlanError
from methods.plan import LayerPlan, Plan
from methods.transfer import result, transfers
from tests.inventories import toy_inventory


def plan_of(*layers: LayerPlan, groups: int = 1) -> Plan:
    return Plan.of(toy_inventory(groups=groups), layers)


def test_identity_states_nothing() -> None:
    inventory = toy_inventory()
    identity = Plan.identity(inventory)
    assert identity.stages == frozenset()
    assert json.loads(identity.dumps()) == {"schema": 1, "family": "toy", "layers": [{}, {}, {}]}
    assert result(identity, inventory) == inventory


def test_statements_that_change_nothing_are_normalised_away() -> None:
    spelled_out = plan_of(LayerPlan(), LayerPlan(experts=(0, 1, 2, 3), top_k=2), LayerPlan(top_k=2))
    assert spelled_out.digest == Plan.identity(toy_inventory()).digest
    clipped = plan_of(LayerPlan(), LayerPlan(experts=(3,), top_k=1), LayerPlan())
    assert clipped.layers[1] == LayerPlan(experts=(3,)), "top_k = min(source top-k, experts) is the default"


def test_json_round_trip_is_stable_and_strict() -> None:
    plan = plan_of(LayerPlan(), LayerPlan(experts=(0, 2)), LayerPlan(drop="moe"))
    assert Plan.loads(plan.dumps()) == plan
    assert Plan.loads(plan.dumps()).dumps() == plan.dumps()
    assert Plan.loads(json.dumps({**json.loads(plan.dumps()), "provenance": {"method": "x"}})) == plan
    with pytest.raises(PlanError, match="not a plan"):
        Plan.loads(json.dumps({**json.loads(plan.dumps()), "extra": 1}))
    with pytest.raises(PlanError, match="not a plan"):
        Plan.loads("{")


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((LayerPlan(), LayerPlan(experts=(0, 4)), LayerPlan()), "layer 1: expert 4 does not exist"),
        ((LayerPlan(experts=(0,)), LayerPlan(), LayerPlan()), "layer 0: .*'dense'"),
        ((LayerPlan(drop="moe"), LayerPlan(), LayerPlan()), "layer 0: .*'dense'"),
        ((LayerPlan(), LayerPlan(experts=(1,), top_k=2), LayerPlan()), "top_k 2 exceeds the 1"),
        ((LayerPlan(drop="block"),) * 3, "every decoder layer"),
        ((LayerPlan(),), "has 1 layers"),
    ],
)
def test_misfits_are_named(layers: tuple[LayerPlan, ...], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        plan_of(*layers)


def test_grouped_router_needs_equal_groups() -> None:
    halves = LayerPlan(experts=(0, 3), top_k=1)
    assert plan_of(LayerPlan(), halves, LayerPlan(), groups=2).layers[1] == halves
    with pytest.raises(PlanError, match=r"same number of experts: \[2, 0\]"):
        plan_of(LayerPlan(), LayerPlan(experts=(0, 1), top_k=1), LayerPlan(), groups=2)
    with pytest.raises(PlanError, match="at least 4 experts in all; 2 stay"):
        plan_of(LayerPlan(), LayerPlan(experts=(0, 3)), LayerPlan(), groups=2)


@pytest.mark.parametrize(
    "bad", [{"experts": ()}, {"experts": (1, 0)}, {"experts": (1, 1)}, {"drop": "moe", "top_k": 1}]
)
def test_layer_plan_rejects_what_is_not_a_normal_form(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        LayerPlan(**bad)  # type: ignore[arg-type]  # wrong on purpose


def test_transfers_renumber_layers_and_experts() -> None:
    inventory = toy_inventory()
    plan = plan_of(LayerPlan(drop="block"), LayerPlan(experts=(1, 3)), LayerPlan(drop="moe"))
    moves = {t.target.name: (t.source.name, t.rows) for t in transfers(plan, inventory)}
    assert moves["layers.0.expert.1.down"] == ("layers.1.expert.3.down", None)
    assert moves["layers.0.router"] == ("layers.1.router", (1, 3))
    assert moves["layers.1.q"] == ("layers.2.q", None)
    assert not any(name.startswith("layers.1.") and ("expert" in name or "norm" in name) for name in moves)
    after = result(plan, inventory)
    assert [(layer.mlp, layer.experts, layer.top_k) for layer in after.layers] == [("moe", 2, 2), ("none", 0, 0)]
    assert [entry.name for entry in after.tensors()] == list(moves)


def test_cost_counts_by_hand() -> None:
    inventory = toy_inventory()
    # hidden 4, width 3, 4 experts, top-2; expert = 3 * 12 weights; q = 16, router = 16, norm = 4, dense = 3 * 20, embed 40
    expert, fixed = 36, 40 + (16 + 4 + 60) + 2 * (16 + 4 + 16)
    base = cost_of(inventory, tokens=10)
    assert base.routed_parameters == 8 * expert and base.parameters == fixed + 8 * expert
    assert base.active_parameters == fixed + 4 * expert and base.channels == 24 and base.bytes == 2 * base.parameters
    matrices = 40 + (16 + 60) + 2 * (16 + 16 + 2 * expert)  # output head, layer 0, layers 1 and 2
    assert base.flops == 2 * 10 * matrices + 3 * 2 * 100 * 1 * (4 + 4)
    half = cost(plan_of(LayerPlan(), LayerPlan(experts=(0, 1)), LayerPlan(experts=(2, 3))), inventory, tokens=10)
    assert half.parameters == half.active_parameters == fixed - 2 * 8 + 4 * expert, "router rows go with their experts"
    assert half.flops == base.flops - 2 * 10 * 2 * 8
    removed = ratios(base, half)
    assert (removed.count, removed.expert, removed.channels) == (0.5, 0.5, 0.5)
    assert removed.total == removed.bytes == pytest.approx(1 - half.parameters / base.parameters)
