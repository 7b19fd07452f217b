"""Plans: normal form, canonical JSON, digest, validation; transfers and cost on an inventory written by hand."""

import json

import pytest
from pydantic import ValidationError

from methods.framework.cost import cost, cost_of, ratios, zeros
from methods.framework.errors import PlanError
from methods.framework.inside import Sparsity
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import AveragedRows, Constants, InsideExpert, MergedExpert, result, transfers
from tests.support.inventories import toy_inventory


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


def merged(into: int, members: tuple[int, ...], weights: tuple[float, ...], **fields: object) -> Merge:
    return Merge.model_validate({"into": into, "members": members, "weights": weights, **fields})


PAIR = merged(1, (1, 3), (0.25, 0.75))


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"merges": (PAIR,)}, "without experts"),
        ({"experts": (0, 1, 3), "merges": (PAIR,)}, "only one of these"),
        ({"experts": (0, 2), "merges": (PAIR,)}, "each of which stays"),
        ({"experts": (0, 1), "merges": (merged(0, (0, 3), (1.0, 1.0)), PAIR)}, "only one of these"),
        ({"experts": (0, 1), "constants": (2,)}, "router='map'"),
        ({"experts": (0, 1), "constants": (3,), "merges": (PAIR,), "router": "map"}, "only one of these"),
        ({"drop": "moe", "router": "map"}, "nothing else left to state"),
    ],
)
def test_contradictions_within_a_layer_are_refused(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        LayerPlan.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"members": (1,), "weights": (1.0,)}, "two or more"),
        ({"members": (3, 1), "weights": (0.5, 0.5)}, "ascending"),
        ({"members": (0, 3), "weights": (0.5, 0.5)}, "not among the members"),
        ({"weights": (1.0,)}, "2 members have 1 weights"),
        ({"weights": (0.5, -0.5)}, "add up to nothing"),
        ({"kernel": "svd"}, "svd states a rank"),
        ({"rank": 3}, "svd states a rank"),
    ],
)
def test_a_merge_is_checked(fields: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Merge.model_validate({**PAIR.model_dump(), **fields})


def layer_of(plan: LayerPlan) -> LayerPlan:
    return plan_of(LayerPlan(), plan, LayerPlan()).layers[1]


def test_merges_have_one_normal_form() -> None:
    idle = merged(1, (1, 2, 3), (0.25, 0.0, 0.75))
    assert layer_of(LayerPlan(experts=(0, 1), merges=(idle,))) == LayerPlan(experts=(0, 1), merges=(PAIR,))
    alone = merged(1, (1, 3), (1.0, 0.0))
    assert layer_of(LayerPlan(experts=(0, 1), merges=(alone,), router="mean")) == LayerPlan(experts=(0, 1))
    kept = LayerPlan(experts=(0, 1), merges=(alone,), router="map")
    assert layer_of(kept) == kept, "with a map the row of expert 3 stays and leads to expert 1"
    assert layer_of(LayerPlan(experts=(0, 1), router="map")) == LayerPlan(experts=(0, 1))


def test_rows_and_map() -> None:
    plan = LayerPlan(experts=(0, 1), merges=(PAIR,), constants=(2,), router="map")
    assert plan.rows == (0, 1, 2, 3) and plan.expert_map == (0, 1, 2, 1)
    partial = LayerPlan(experts=(1, 2), merges=(PAIR,), router="map")
    assert partial.rows == (1, 2, 3) and partial.expert_map == (0, 1, 0), "the row of expert 0 is gone"
    assert LayerPlan(experts=(0, 1), merges=(PAIR,)).expert_map is None


def test_a_mapped_layer_is_not_selected_again() -> None:
    inventory = toy_inventory()
    mapped = plan_of(LayerPlan(), LayerPlan(experts=(0, 1), merges=(PAIR,), router="map"), LayerPlan())
    middle = result(mapped, inventory)
    assert (middle.layers[1].experts, middle.layers[1].rows, middle.layers[1].expert_map) == (2, 3, (0, 1, 1))
    with pytest.raises(PlanError, match="lead to one expert already"):
        Plan.of(middle, [LayerPlan(), LayerPlan(experts=(0,)), LayerPlan()])
    assert Plan.of(middle, [LayerPlan(), LayerPlan(top_k=1), LayerPlan()]).layers[1].top_k == 1


def test_transfers_of_a_merge() -> None:
    inventory = toy_inventory()
    plan = plan_of(LayerPlan(), LayerPlan(experts=(0, 1), merges=(PAIR,), router="mean"), LayerPlan())
    items = [item for item in transfers(plan, inventory) if item.target.layer == 1 and item.recipe is not None]
    router, *matrices = items
    assert isinstance(router.recipe, AveragedRows) and router.target.shape == (2, 4)
    assert router.recipe.members == ((0,), (1, 3)) and router.recipe.weights == ((1.0,), (0.25, 0.75))
    assert [item.target.role for item in matrices] == ["expert.gate", "expert.up", "expert.down"]
    for item in matrices:
        assert isinstance(item.recipe, MergedExpert) and [entry.expert for entry in item.recipe.sources] == [1, 3]
        assert item.target.expert == 1 and item.source.expert == 1


def test_constants_are_one_small_tensor_beside_the_router() -> None:
    inventory = toy_inventory()
    plan = plan_of(LayerPlan(), LayerPlan(experts=(0, 1), constants=(2, 3), router="map"), LayerPlan())
    assert plan.moments == {"routed_output_mean"} and not plan_of(LayerPlan(), LayerPlan(), LayerPlan()).moments
    (item,) = [item for item in transfers(plan, inventory) if isinstance(item.recipe, Constants)]
    assert item.recipe == Constants(1, (2, 3)) and item.target.shape == (2, 4)
    before, after = cost_of(inventory), cost(plan, inventory)
    assert after.parameters == before.parameters - 2 * 36 + 2 * 4, (
        "two experts of 3 x 12 weights become two vectors of 4"
    )
    assert after.flops == before.flops, "a token may choose two stored experts, so nothing is promised"


def test_an_experts_merge_is_stored_once() -> None:
    inventory = toy_inventory()
    plan = plan_of(LayerPlan(), LayerPlan(experts=(0, 1), merges=(PAIR,), router="map"), LayerPlan())
    after = cost(plan, inventory)
    assert after.experts == 6 and after.routed_parameters == 6 * 36
    assert after.parameters == cost_of(inventory).parameters - 2 * 36 - 4, "experts 2 and 3, and the row of expert 2"


HALF = Sparsity(share=0.5, kernel="wanda")


def test_sparsity_is_a_stage_of_its_own() -> None:
    inventory = toy_inventory()
    plan = plan_of(LayerPlan(), LayerPlan(sparsity=HALF), LayerPlan(experts=(0, 2), sparsity=HALF))
    assert plan.stages == {"experts", "sparsity"} and plan.moments == {"input_square", "channel_square"}
    assert Plan.loads(plan.dumps()) == plan
    assert result(plan, inventory).layers[1] == inventory.layers[1], "shapes stay as they are"
    # gate and up are [3, 4], down is [4, 3]: two of four inputs, one of three.
    assert zeros(plan, inventory) == (4 + 2) * (2 * 3 * 2 + 4 * 1)
    assert (
        cost(plan, inventory).bytes
        == cost(plan_of(LayerPlan(), LayerPlan(), LayerPlan(experts=(0, 2))), inventory).bytes
    )
    items = [item for item in transfers(plan, inventory) if isinstance(item.recipe, InsideExpert)]
    assert len(items) == 3 * (4 + 2) and {item.recipe.layer for item in items} == {1, 2}
    assert [item.target.expert for item in items[-3:]] == [1] * 3 and items[-1].recipe.expert == 2


@pytest.mark.parametrize(
    ("sparsity", "reason"),
    [
        ({"share": 0.4, "pattern": "2:4"}, "share of 0.5"),
        ({"share": 1.0}, "less than 1"),
        ({"share": 0.0}, "greater than 0"),
    ],
)
def test_a_sparsity_is_checked(sparsity: dict[str, object], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        Sparsity.model_validate(sparsity)


def test_patterns_need_whole_blocks_and_experts() -> None:
    with pytest.raises(PlanError, match=r"expert.down has 3"):
        plan_of(LayerPlan(), LayerPlan(sparsity=Sparsity(share=0.5, pattern="2:4")), LayerPlan())
    with pytest.raises(PlanError, match="'dense'"):
        plan_of(LayerPlan(sparsity=HALF), LayerPlan(), LayerPlan())
    with pytest.raises(ValidationError, match="nothing else left"):
        LayerPlan(drop="moe", sparsity=HALF)
