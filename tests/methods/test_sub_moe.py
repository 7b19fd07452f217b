"""Sub-MoE: clusters by output cosine, the joint subspace against numpy's SVD, planted duplicates."""

import numpy as np
import pytest

from methods import registry
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.stats import Stats
from tests.support.inventories import toy_inventory
from tests.support.merged_layer import MergedLayer, groups_of, plan_of

PAIRS = [(0, 1), (2, 7), (3, 5), (4, 6)]


@pytest.mark.parametrize("clustering", ["kmeans", "average"])
def test_by_hand(clustering: str) -> None:
    cosine = np.array([[1.0, 0.1, 0.9, 0.0], [0.1, 1.0, 0.2, 0.7], [0.9, 0.2, 1.0, -0.1], [0.0, 0.7, -0.1, 1.0]])
    moments = np.zeros((4, 3, 3))
    moments[:, 0, 0] = [3, 4, 1, 4]
    stats = Stats({"output_cosine": (None, cosine), "gate_norm_moment": (None, moments)}, 10)
    plan = registry.method("sub_moe", clustering=clustering).plan(toy_inventory(moe_layers=1), stats).layers[1]
    assert plan == LayerPlan(
        experts=(0, 1),
        merges=(
            Merge(into=0, members=(0, 2), weights=(0.75, 0.25), kernel="svd", rank=2),
            Merge(into=1, members=(1, 3), weights=(0.5, 0.5), kernel="svd", rank=2),
        ),
        router="map",
    ), "rank is 0.75 of the 3 channels, rounded down; of two that are used alike the more typical one gives its place"


@pytest.mark.parametrize(("share", "rank"), [(0.1, 1), (0.34, 1), (0.67, 2), (0.99, 2), (1.0, None)])
def test_rank_share_counts_from_the_smaller_side(share: float, rank: int | None) -> None:
    plan = plan_of(registry.method("sub_moe", rank_share=share), MergedLayer.drawn(0))
    assert {(merge.kernel, merge.rank) for merge in plan.merges} == {("mean" if rank is None else "svd", rank)}


@pytest.mark.parametrize("clustering", ["kmeans", "average"])
@pytest.mark.parametrize("weights", ["frequency", "uniform"])
def test_planted_duplicates_merge_into_the_same_function(clustering: str, weights: str) -> None:
    layer = MergedLayer.of_pairs(5, PAIRS)
    plan = plan_of(registry.method("sub_moe", clustering=clustering, weights=weights, rank_share=1.0), layer)
    assert groups_of(plan) == PAIRS and plan.rows == tuple(range(8))
    assert np.abs(layer.forward(plan) - layer.forward()).max() < 1e-10
    truncated = plan_of(registry.method("sub_moe", clustering=clustering, weights=weights, rank_share=0.4), layer)
    assert groups_of(truncated) == PAIRS
    assert np.abs(layer.forward(truncated) - layer.forward()).max() > 1e-3, "a projection loses something"


def test_the_plan_is_the_joint_decomposition_of_the_paper() -> None:
    layer = MergedLayer.drawn(6)
    plan = plan_of(registry.method("sub_moe", rank_share=0.7), layer)
    experts = {name: getattr(layer, name).copy() for name in ("gate", "up", "down")}
    for merge in plan.merges:
        for value in experts.values():
            left, singular, right = np.linalg.svd(
                np.concatenate(value[list(merge.members)], axis=1), full_matrices=False
            )
            blocks = np.split(right[: merge.rank], len(merge.members), axis=1)  # V_i^T: columns of member i
            mean = sum(w * block for w, block in zip(merge.weights, blocks, strict=True))
            value[merge.into] = left[:, : merge.rank] * singular[: merge.rank] @ mean
    gates = layer.gates(layer.logits())
    assert plan.experts is not None and plan.expert_map is not None
    expected = np.zeros_like(layer.tokens)
    for t, x in enumerate(layer.tokens):
        for row in np.flatnonzero(gates[t]):
            place = plan.experts[plan.expert_map[row]]
            expected[t] += gates[t, row] * layer._run(*(experts[name][place] for name in ("gate", "up", "down")), x)
    assert plan.merges and np.abs(layer.forward(plan) - expected).max() < 1e-10
