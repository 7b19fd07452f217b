"""STUN's structured stage: clusters of router rows by hand, the effect of co-activation, planted duplicates."""

import numpy as np
import pytest

from methods import registry
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import Array, Stats
from methods.kernels.clustering import agglomerate, euclidean
from tests.support.inventories import toy_inventory
from tests.support.merged_layer import MergedLayer, groups_of, plan_of

PAIRS = [(0, 3), (1, 6), (2, 4), (5, 7)]


def decided(
    rows: list[list[float]], together: Array | None = None, tokens: list[float] | None = None, **knobs: object
) -> LayerPlan:
    router = np.array(rows)
    values = {"router_row_gram": router @ router.T}
    if together is not None:
        values["coactivation"] = together
    if tokens is not None:
        moments = np.zeros((len(rows), 3, 3))
        moments[:, 0, 0] = tokens
        values["gate_norm_moment"] = moments
    stats = Stats({name: (None, value) for name, value in values.items()}, 10)
    return registry.method("stun", **knobs).plan(toy_inventory(experts=len(rows), moe_layers=1), stats).layers[1]


LINE = [[0.0, 1.0], [1.0, 1.0], [2.5, 1.0], [10.0, 1.0], [20.0, 1.0], [30.0, 1.0]]


def test_the_row_nearest_to_the_mean_of_its_cluster_stays() -> None:
    # Cluster of 0, 1 and 2.5: mean 1.17.
    assert decided(LINE, keep=2 / 3) == LayerPlan(experts=(1, 3, 4, 5))
    most_used = decided(LINE, tokens=[1, 2, 3, 1, 1, 1], keep=2 / 3, representative="frequency")
    assert most_used == LayerPlan(experts=(2, 3, 4, 5))
    mapped = decided(LINE, keep=2 / 3, router="map")
    assert mapped.expert_map == (0, 0, 0, 1, 2, 3) and groups_of(mapped) == [(0, 1, 2)]


def test_clusters_are_bounded_by_their_largest_distance() -> None:
    # 4.5 is 3.5 from {0, 2} on average and 4.0 from 8.5, but 4.5 from the farther of the two.
    rows = [[0.0], [2.0], [4.5], [8.5], [100.0], [200.0]]
    assert groups_of(decided(rows, keep=2 / 3, router="map")) == [(0, 1), (2, 3)]
    by_mean = agglomerate(euclidean(np.array(rows)), 4, "average")
    assert sorted(map(sorted, by_mean)) == [[0, 1, 2], [3], [4], [5]]


def test_experts_that_are_chosen_together_come_together() -> None:
    rows = [[0.0], [1.0], [2.1], [9.0]]
    together = np.zeros((4, 4))
    together[1, 2] = together[2, 1] = 50.0
    np.fill_diagonal(together, 1000.0)
    assert groups_of(decided(rows, keep=0.75, router="map")) == [(0, 1)]
    assert groups_of(decided(rows, together, keep=0.75, router="map", coactivation_weight=0.5)) == [(1, 2)]
    assert groups_of(decided(rows, 0 * together, keep=0.75, router="map", coactivation_weight=0.5)) == [(0, 1)]


def test_needs_no_tokens_by_default() -> None:
    assert registry.method("stun").needs == {"router_row_gram"}


@pytest.mark.parametrize("representative", ["nearest", "frequency"])
@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_planted_duplicates_are_clustered_and_nothing_changes_when_rows_stay(
    representative: str, weight: float
) -> None:
    layer = MergedLayer.of_pairs(8, PAIRS)
    knobs = {"representative": representative, "coactivation_weight": weight}
    mapped = plan_of(registry.method("stun", router="map", **knobs), layer)
    assert groups_of(mapped) == PAIRS and len(mapped.experts or ()) == 4
    assert np.array_equal(layer.forward(mapped), layer.forward())
    sliced = plan_of(registry.method("stun", **knobs), layer)
    assert all(len(set(pair) & set(sliced.experts or ())) == 1 for pair in PAIRS)
    assert np.abs(layer.forward(sliced) - layer.forward()).max() > 1e-2
