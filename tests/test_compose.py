"""Composition is substitution: associative, with the identity as unit, and equal to doing one after the other."""

import itertools

import numpy as np
import pytest

from methods.compose import compose
from methods.errors import PlanError
from methods.inventory import Inventory
from methods.plan import LayerPlan, Plan
from methods.transfer import result
from tests.inventories import toy_inventory


def random_plan(inventory: Inventory, rng: np.random.Generator) -> Plan:
    layers = []
    for layer in inventory.layers:
        kind = rng.choice(["none", "moe", "block", "experts", "top_k"])
        if layer.mlp != "moe" and kind != "block":
            kind = "none"
        if kind == "experts":
            count = int(rng.integers(1, layer.experts + 1))
            layers.append(LayerPlan(experts=tuple(sorted(rng.choice(layer.experts, count, replace=False).tolist()))))
        elif kind == "top_k":
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
