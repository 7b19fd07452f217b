"""Composition is substitution: associative, with the identity as unit, and equal to doing one after the other."""

import itertools

import numpy as np
import pytest

from methods.framework.compose import compose
from methods.framework.errors import PlanError
from methods.framework.inside import Sparsity
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import result
from tests.support.inventories import toy_inventory


def random_plan(inventory: Inventory, rng: np.random.Generator) -> Plan:
    layers = []
    for layer in inventory.layers:
        kind = rng.choice(["none", "moe", "block", "experts", "top_k", "merge"])
        if layer.mlp != "moe" and kind != "block":
            kind = "none"
        if kind == "experts":
            count = int(rng.integers(1, layer.experts + 1))
            layers.append(LayerPlan(experts=tuple(sorted(rng.choice(layer.experts, count, replace=False).tolist()))))
        elif kind == "merge" and layer.experts > 1:
            pair = tuple(sorted(rng.choice(layer.experts, 2, replace=False).tolist()))
            halves = Merge(into=int(rng.choice(pair)), members=pair, weights=(0.5, 0.5))
            stays = tuple(e for e in range(layer.experts) if e not in pair or e == halves.into)
            layers.append(LayerPlan(experts=stays, merges=(halves,), router="mean"))
        elif kind in ("merge", "top_k"):
            layers.append(LayerPlan(top_k=int(rng.integers(1, layer.experts + 1))))
        else:
            layers.append(LayerPlan(drop=kind))
    if all(layer.drop == "block" for layer in layers):
        layers[-1] = LayerPlan()
    return Plan.of(inventory, layers)


@pytest.mark.parametrize("seed", range(50))
def test_laws_of_composition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source = toy_inventory(experts=6, moe_layers=4)
    first = random_plan(source, rng)
    middle = result(first, source)
    second = random_plan(middle, rng)
    last = result(second, middle)
    third = random_plan(last, rng)
    both = compose(first, second, source)
    assert result(both, source) == last
    assert compose(both, third, source) == compose(first, compose(second, third, middle), source)
    assert compose(first, Plan.identity(middle), source) == first
    assert compose(Plan.identity(source), first, source) == first


def test_indices_are_substituted() -> None:
    source = toy_inventory()
    first = Plan.of(source, [LayerPlan(drop="block"), LayerPlan(experts=(1, 2, 3)), LayerPlan()])
    second = Plan.of(result(first, source), [LayerPlan(experts=(0, 2)), LayerPlan(drop="moe")])
    assert compose(first, second, source).layers == (
        LayerPlan(drop="block"),
        LayerPlan(experts=(1, 3)),
        LayerPlan(drop="moe"),
    )


def test_a_second_plan_for_another_model_is_refused() -> None:
    source = toy_inventory()
    first = Plan.of(source, [LayerPlan(), LayerPlan(drop="moe"), LayerPlan()])
    made_for_source = Plan.of(source, [LayerPlan(), LayerPlan(experts=(0, 1)), LayerPlan()])
    with pytest.raises(PlanError, match="what the first leaves: layer 1"):
        compose(first, made_for_source, source)


def test_all_orders_of_top_k() -> None:
    source = toy_inventory()
    for a, b in itertools.product((1, 2, 3), repeat=2):
        first = Plan.of(source, [LayerPlan(), LayerPlan(top_k=a), LayerPlan()])
        second = Plan.of(result(first, source), [LayerPlan(), LayerPlan(top_k=b), LayerPlan()])
        assert result(compose(first, second, source), source).layers[1].top_k == b


def merged(into: int, *pairs: tuple[int, float], kernel: str = "mean", rank: int | None = None) -> Merge:
    members, weights = zip(*pairs, strict=True)
    return Merge(into=into, members=members, weights=weights, kernel=kernel, rank=rank)


def composed(first: LayerPlan, second: LayerPlan, experts: int = 6) -> LayerPlan:
    """Return the composition of two plans of one layer, after comparing what they leave."""
    source = toy_inventory(experts=experts, moe_layers=1)
    one = Plan.of(source, [LayerPlan(), first])
    middle = result(one, source)
    two = Plan.of(middle, [LayerPlan(), second])
    both = compose(one, two, source)
    assert result(both, source) == result(two, middle)
    return both.layers[1]


def test_merging_what_was_selected() -> None:
    first = LayerPlan(experts=(1, 3, 4, 5))
    second = LayerPlan(experts=(0, 1), merges=(merged(1, (1, 0.25), (3, 0.75)),), router="map")
    assert composed(first, second) == LayerPlan(experts=(1, 3), merges=(merged(3, (3, 0.25), (5, 0.75)),), router="map")


def test_selecting_among_what_was_merged() -> None:
    first = LayerPlan(
        experts=(0, 1, 2), merges=(merged(0, (0, 0.5), (4, 0.5)), merged(2, (2, 1.0), (3, 2.0))), router="mean"
    )
    expected = LayerPlan(experts=(1, 2), merges=(merged(2, (2, 1.0), (3, 2.0)),), router="mean")
    assert composed(first, LayerPlan(experts=(1, 2))) == expected


def test_an_average_of_averages_is_an_average() -> None:
    first = LayerPlan(experts=(0, 1, 2), merges=(merged(0, (0, 0.5), (4, 0.5)),), router="mean")
    second = LayerPlan(experts=(0, 1), merges=(merged(0, (0, 0.8), (2, 0.2)),), router="mean")
    assert composed(first, second) == LayerPlan(
        experts=(0, 1), merges=(merged(0, (0, 0.4), (2, 0.2), (4, 0.4)),), router="mean"
    )


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (
            LayerPlan(experts=(0, 1, 2), merges=(merged(0, (0, 0.5), (4, 0.5)),), router="map"),
            LayerPlan(experts=(0, 1)),
            "lead to one expert already",
        ),
        (
            LayerPlan(experts=(0, 1, 2), merges=(merged(0, (0, 0.5), (4, 0.5)),), router="slice"),
            LayerPlan(experts=(0, 1), merges=(merged(1, (1, 0.5), (2, 0.5)),), router="mean"),
            "one router row each",
        ),
        (
            LayerPlan(experts=(0, 1, 2), merges=(merged(0, (0, 0.5), (4, 0.5)),), router="slice"),
            LayerPlan(experts=(0, 1), merges=(merged(1, (1, 0.5), (2, 0.5)),), router="map"),
            "one router row each",
        ),
        (
            LayerPlan(experts=(0, 1, 2), merges=(merged(0, (0, 0.5), (4, 0.5), kernel="aligned"),)),
            LayerPlan(experts=(0, 1), merges=(merged(0, (0, 0.5), (2, 0.5)),)),
            "only plain averages",
        ),
        (
            LayerPlan(experts=(0, 1, 2), merges=(merged(0, (0, 1.5), (4, 0.5)),)),
            LayerPlan(experts=(0, 1), merges=(merged(0, (0, 0.5), (2, 0.5)),)),
            "only plain averages",
        ),
    ],
)
def test_what_one_plan_cannot_state_is_refused(first: LayerPlan, second: LayerPlan, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        composed(first, second)


SPARSE = Sparsity(share=0.5)


def test_sparsity_comes_last() -> None:
    chosen = LayerPlan(experts=(1, 3))
    assert composed(chosen, LayerPlan(sparsity=SPARSE)) == LayerPlan(experts=(1, 3), sparsity=SPARSE)
    assert composed(LayerPlan(sparsity=SPARSE), chosen) == LayerPlan(experts=(1, 3), sparsity=SPARSE), (
        "zeros stay zeros"
    )
    again = LayerPlan(sparsity=SPARSE), "the order is channels, rank, bases, sparsity, bits, each stated once"
    for second, reason in (again, (LayerPlan(experts=(0,), merges=(merged(0, (0, 0.5), (1, 0.5)),)), "merge first")):
        with pytest.raises(PlanError, match=reason):
            composed(LayerPlan(experts=(0, 1, 2), sparsity=SPARSE), second)
