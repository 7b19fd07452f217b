"""HC-SMoE: clusters of mean outputs by hand, the traps of the official code, planted duplicates."""

import numpy as np
import pytest

from methods import registry
from methods.framework.errors import ConfigError, UnknownNameError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.stats import Stats
from tests.support.inventories import toy_inventory
from tests.support.merged_layer import MergedLayer, groups_of, plan_of

PAIRS = [(0, 6), (1, 2), (3, 7), (4, 5)]


def decided(positions: list[float], tokens: list[float], **knobs: object) -> LayerPlan:
    """Return the plan for experts whose mean outputs lie on a line."""
    mean, moments = np.zeros((len(positions), 4)), np.zeros((len(positions), 3, 3))
    mean[:, 1], moments[:, 0, 0] = positions, tokens
    stats = Stats({"dense_output_mean": (None, mean), "gate_norm_moment": (None, moments)}, 10)
    inventory = toy_inventory(experts=len(positions), moe_layers=1)
    return registry.method("hc_smoe", **knobs).plan(inventory, stats).layers[1]


def test_by_hand() -> None:
    positions, tokens = [0.0, 5.0, 0.5, 20.0], [1.0, 5.0, 3.0, 0.0]
    assert decided(positions, tokens, keep=0.75) == LayerPlan(
        experts=(1, 2, 3), merges=(Merge(into=2, members=(0, 2), weights=(0.25, 0.75)),), router="map"
    )
    assert decided(positions, tokens, keep=0.5) == LayerPlan(
        experts=(1, 3), merges=(Merge(into=1, members=(0, 1, 2), weights=(1 / 9, 5 / 9, 3 / 9)),), router="map"
    )


def test_linkages_differ_where_they_should() -> None:
    # A chain with growing gaps beside a pair: single linkage follows the chain, complete linkage does not.
    chain = [0.0, 1.0, 2.1, 3.3, 4.6, 6.2, 7.9, 20.0]
    found = {link: groups_of(decided(chain, [1] * 8, keep=0.375, linkage=link)) for link in ("single", "complete")}
    assert found["single"] == [(0, 1, 2, 3, 4, 5)]
    assert found["complete"] == [(0, 1, 2, 3), (4, 5, 6)]
    for link in ("average", "complete", "single"):
        assert groups_of(decided([0.0, 9.0, 3.0, 9.5], [1] * 4, keep=0.75, linkage=link)) == [(1, 3)], (
            "the closest pair"
        )


def test_a_misspelt_linkage_is_refused() -> None:
    with pytest.raises(ConfigError, match="linkage"):
        registry.method("hc_smoe", linkage="hirarchical")
    with pytest.raises(UnknownNameError, match="did you mean 'linkage'"):
        registry.method("hc_smoe", linkag="average")


def test_a_cluster_without_tokens_is_averaged_equally() -> None:
    plan = decided([0.0, 0.1, 5.0, 9.0], [0, 0, 7, 2], keep=0.75)
    assert plan.merges[0].weights == (0.5, 0.5)
    weighted = decided([0.0, 0.1, 5.0, 9.0], [6, 2, 7, 2], keep=0.75, weights="uniform", alignment=True)
    assert weighted.merges[0].weights == (0.5, 0.5) and weighted.merges[0].kernel == "aligned"


@pytest.mark.parametrize("feature", ["output", "weights", "router"])
@pytest.mark.parametrize("linkage", ["average", "complete", "single"])
@pytest.mark.parametrize("alignment", [False, True])
def test_planted_duplicates_merge_into_the_same_function(feature: str, linkage: str, alignment: bool) -> None:
    layer = MergedLayer.of_pairs(3, PAIRS)
    knobs = {"feature": feature, "linkage": linkage, "alignment": alignment}
    plan = plan_of(registry.method("hc_smoe", **knobs), layer)
    assert groups_of(plan) == PAIRS and plan.rows == tuple(range(8)) and len(plan.experts or ()) == 4
    assert np.abs(layer.forward(plan) - layer.forward()).max() < 1e-10
    sliced = plan_of(registry.method("hc_smoe", router="slice", **knobs), layer)
    assert np.abs(layer.forward(sliced) - layer.forward()).max() > 1e-2


def test_all_merged_into_one() -> None:
    layer = MergedLayer.drawn(4)
    plan = plan_of(registry.method("hc_smoe", keep=0.125), layer)
    assert plan.expert_map == (0,) * 8 and len(plan.experts or ()) == 1


def test_the_middle_of_a_cluster_gives_its_place_where_weights_tie() -> None:
    plan = decided([0.0, 1.0, 2.5, 50.0], [9, 1, 1, 9], weights="uniform")
    assert [(merge.into, merge.members) for merge in plan.merges] == [(1, (0, 1, 2))]
