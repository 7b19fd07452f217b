"""Partition and clustering kernels against loops over everything there is, and builders of layer plans from groups."""

import time
from collections.abc import Iterator

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster
from scipy.cluster.hierarchy import linkage as scipy_linkage
from scipy.spatial.distance import squareform

from methods.framework.errors import RefusedError, UnknownNameError
from methods.framework.grouping import (
    by_matrix,
    centrality,
    centres,
    first_by,
    grouped,
    keep_one,
    merge_plan,
    ordered,
    uniform_weights,
    usage_weights,
    within_router_groups,
)
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Array
from methods.kernels.clustering import LINKAGES, agglomerate, euclidean, gram_distance, spherical_kmeans
from methods.kernels.partition import EXACT_LIMIT, exact_partition, improved, objective, partition, spectral
from tests.support.inventories import toy_inventory

Blocks = list[list[int]]


def set_partitions(items: list[int], blocks: int) -> Iterator[Blocks]:
    if not items:
        if blocks == 0:
            yield []
        return
    first, rest = items[0], items[1:]
    for smaller in set_partitions(rest, blocks - 1):
        yield [[first], *smaller]
    for same in set_partitions(rest, blocks):
        for place in range(len(same)):
            yield [*same[:place], [first, *same[place]], *same[place + 1 :]]


def slow_objective(similarity: Array, groups: Blocks) -> float:
    total = 0.0
    for group in groups:
        pairs = [similarity[i, j] for i in group for j in group if i < j]
        total += sum(pairs) / len(group)
    return total


def similarities(items: int, seed: int, low: float = 0.0) -> Array:
    values = np.random.default_rng(seed).uniform(low, 1.0, (items, items))
    return np.asarray((values + values.T) / 2)


def planted(sizes: list[int], seed: int, noise: float = 0.1) -> tuple[Array, Blocks]:
    """Similarities near 0.9 inside blocks and near 0.2 across them, with the items shuffled."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    base = np.where(labels[:, None] == labels[None, :], 0.9, 0.2) + noise * rng.uniform(-1, 1, (len(labels),) * 2)
    return (base + base.T) / 2, [[int(i) for i in np.flatnonzero(labels == block)] for block in range(len(sizes))]


def items_of(groups: Blocks) -> list[int]:
    return sorted(item for group in groups for item in group)


def relabel(groups: Blocks, labels: Array) -> list[tuple[int, ...]]:
    return ordered([[int(labels[i]) for i in group] for group in groups])


@pytest.mark.parametrize(("blocks", "count"), [(6, 266), (4, 1701)])
def test_exact_partition_is_the_best_of_all(blocks: int, count: int) -> None:
    for seed, low in ((0, 0.0), (1, -1.0)):
        similarity = similarities(8, seed, low)
        every = list(set_partitions(list(range(8)), blocks))
        assert len(every) == count
        best = max(every, key=lambda groups: slow_objective(similarity, groups))
        assert ordered(exact_partition(similarity, blocks)) == ordered(best)
        assert ordered(partition(similarity, blocks)) == ordered(best)


@pytest.mark.parametrize("items", [1, 2, 5, 7])
def test_exact_partition_for_every_number_of_blocks(items: int) -> None:
    similarity = similarities(items, items, low=-0.5)
    for blocks in range(1, items + 1):
        best = max(slow_objective(similarity, groups) for groups in set_partitions(list(range(items)), blocks))
        for found in (exact_partition(similarity, blocks), partition(similarity, blocks)):
            assert len(found) == blocks and items_of(found) == list(range(items))
            assert slow_objective(similarity, found) == pytest.approx(best, abs=1e-12)
            assert objective(similarity, found) == pytest.approx(best, abs=1e-12)


def test_exact_partition_of_ten_takes_less_than_a_second() -> None:
    similarity = similarities(10, 0)
    start = time.process_time()
    exact_partition(similarity, 5)
    assert time.process_time() - start < 1.0


def test_the_mean_per_member_does_not_favour_one_huge_block() -> None:
    similarity, blocks = planted([4, 4], seed=3, noise=0.0)
    similarity = similarity * 0.3 + 0.7  # 0.97 inside, 0.76 across: the plain sum over pairs is largest for 7 + 1
    huge = [[i for i in range(8) if i != 5], [5]]
    plain = [sum(similarity[i, j] for g in groups for i in g for j in g if i < j) for groups in (huge, blocks)]
    assert plain[0] > plain[1]
    assert ordered(partition(similarity, 2)) == ordered(blocks)


@pytest.mark.parametrize("sizes", [[3, 3, 3, 3], [6, 3, 2, 1], [1, 1, 10]])
def test_local_moves_reach_the_exact_optimum_on_planted_blocks(sizes: list[int]) -> None:
    similarity, blocks = planted(sizes, seed=len(sizes))
    found = partition(similarity, len(sizes), exact_up_to=0)
    assert ordered(found) == ordered(blocks) == ordered(exact_partition(similarity, len(sizes)))


def test_planted_blocks_of_many_experts() -> None:
    similarity, blocks = planted([9, 7, 5, 4, 3, 2, 2, 1, 1, 1, 1, 12], seed=5)
    assert ordered(partition(similarity, len(blocks))) == ordered(blocks)


@pytest.mark.parametrize("seed", range(6))
def test_local_moves_never_worsen_and_leave_nothing_to_gain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity = similarities(13, seed, low=-0.3)
    start = [[int(i) for i in part] for part in np.array_split(rng.permutation(13), 4)]
    found = improved(similarity, start)
    reached = slow_objective(similarity, found)
    assert len(found) == 4 and items_of(found) == list(range(13)) and all(found)
    assert reached >= slow_objective(similarity, start)
    for group in found:
        for other in found:
            if other is group:
                continue
            rest = [g for g in found if g is not group and g is not other]
            for i in group:
                less = [k for k in group if k != i]
                if less:
                    assert slow_objective(similarity, [*rest, less, [*other, i]]) <= reached + 1e-9
                for j in other:
                    swapped = [*rest, [*less, j], [*(k for k in other if k != j), i]]
                    assert slow_objective(similarity, swapped) <= reached + 1e-9


@pytest.mark.parametrize("items", [12, 13])
def test_heuristic_partition_is_near_the_optimum_and_above_its_starts(items: int) -> None:
    for seed in range(4):
        similarity = similarities(items, seed)
        best = objective(similarity, exact_partition(similarity, 5))
        found = objective(similarity, partition(similarity, 5))
        starts = [spectral(similarity, 5), agglomerate(1 - similarity, 5), agglomerate(1 - similarity, 5, "complete")]
        assert max(objective(similarity, start) for start in starts) <= found <= best + 1e-12
        assert found >= 0.97 * best


@pytest.mark.parametrize("items", [9, 24])
def test_relabelling_items_relabels_the_blocks(items: int) -> None:
    rng = np.random.default_rng(items)
    points = rng.normal(size=(items, 5))
    labels = rng.permutation(items)
    cosine = points @ points.T / np.outer(*[np.linalg.norm(points, axis=1)] * 2)
    moved = cosine[np.ix_(labels, labels)]
    for blocks in (2, items // 2, items - 2):
        assert relabel(partition(moved, blocks), labels) == ordered(partition(cosine, blocks))
        assert relabel(spherical_kmeans(moved, blocks), labels) == ordered(spherical_kmeans(cosine, blocks))
        for link in LINKAGES:
            one, other = agglomerate(1 - moved, blocks, link), agglomerate(1 - cosine, blocks, link)
            assert relabel(one, labels) == ordered(other)


@pytest.mark.parametrize("link", LINKAGES)
def test_every_linkage_joins_the_closest_pair_first(link: str) -> None:
    points = np.array([[0.0], [5.0], [5.5], [20.0]])
    assert ordered(agglomerate(euclidean(points), 3, link)) == [(0,), (1, 2), (3,)]
    assert ordered(agglomerate(euclidean(points), 2, link)) == [(0, 1, 2), (3,)]


@pytest.mark.parametrize("link", LINKAGES)
def test_agglomerate_agrees_with_the_definition_and_with_scipy(link: str) -> None:
    reduce = {"average": np.mean, "complete": np.max, "single": np.min}[link]
    for seed in range(3):
        distance = similarities(9, seed)
        np.fill_diagonal(distance, 0.0)
        clusters = [[i] for i in range(9)]
        while len(clusters) > 3:
            pairs = [(a, b) for a in range(len(clusters)) for b in range(a + 1, len(clusters))]
            a, b = min(pairs, key=lambda ab: reduce([distance[i, j] for i in clusters[ab[0]] for j in clusters[ab[1]]]))
            clusters[a] = clusters[a] + clusters.pop(b)
        assert ordered(agglomerate(distance, 3, link)) == ordered(clusters)
        labels = fcluster(scipy_linkage(squareform(distance), link), 3, "maxclust")
        assert ordered(agglomerate(distance, 3, link)) == ordered([np.flatnonzero(labels == k) for k in (1, 2, 3)])


def test_unknown_linkage_names_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'complete'"):
        agglomerate(np.zeros((3, 3)), 2, "complet")


def test_impossible_partitions_are_refused() -> None:
    with pytest.raises(RefusedError, match="into 4 groups; allowed: 1 to 3"):
        partition(np.zeros((3, 3)), 4)
    with pytest.raises(RefusedError, match=str(EXACT_LIMIT)):
        exact_partition(np.zeros((EXACT_LIMIT + 1,) * 2), 2)


def test_spherical_kmeans_stops_where_each_vector_fits_its_own_cluster_best() -> None:
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(20, 4))
        units = points / np.linalg.norm(points, axis=1, keepdims=True)
        clusters = spherical_kmeans(units @ units.T, 4)
        assert items_of(clusters) == list(range(20)) and all(clusters)
        means = np.array([units[cluster].sum(axis=0) for cluster in clusters])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        for place, cluster in enumerate(clusters):
            for i in cluster:
                assert float(units[i] @ means[place]) >= max(float(units[i] @ mean) for mean in means) - 1e-9


def test_spherical_kmeans_never_returns_an_empty_cluster() -> None:
    clusters = spherical_kmeans(np.ones((6, 6)), 4)
    assert len(clusters) == 4 and all(clusters) and items_of(clusters) == list(range(6))
    similarity, blocks = planted([5, 4, 3], seed=2, noise=0.0)
    np.fill_diagonal(similarity, 1.0)
    assert ordered(spherical_kmeans(similarity, 3)) == ordered(blocks)


def test_distances_are_the_norms_of_differences() -> None:
    points = np.random.default_rng(0).normal(size=(5, 3))
    for i in range(5):
        for j in range(5):
            expected = float(np.linalg.norm(points[i] - points[j]))
            assert euclidean(points)[i, j] == pytest.approx(expected, abs=1e-12)
            assert gram_distance(points @ points.T)[i, j] == pytest.approx(expected, abs=1e-7)


def test_groups_inside_the_groups_of_the_router() -> None:
    similarity = np.full((8, 8), 0.1)
    for i, j in ((0, 1), (2, 6), (4, 5), (3, 7)):
        similarity[i, j] = similarity[j, i] = 0.9
    split = by_matrix(similarity, partition)
    inventory = toy_inventory(experts=8, groups=2)
    inside = grouped(inventory, 1, 0.75, "mean", split)
    assert inside == [(0, 1), (2,), (3,), (4, 5), (6,), (7,)], "one pair in each half, though others cross the halves"
    assert grouped(inventory, 1, 0.5, "map", split) == [(0, 1), (2, 6), (3, 7), (4, 5)]
    assert grouped(inventory, 1, 1.0, "slice", split) == [(i,) for i in range(8)]
    assert within_router_groups(6, 2, 2, lambda members, blocks: [members]) == [(0, 1, 2), (3, 4, 5)]


def test_weights_of_members() -> None:
    groups = [(0, 2), (1, 3), (4,)]
    assert usage_weights(groups, np.array([3.0, 0.0, 1.0, 0.0, 0.0])) == [(0.75, 0.25), (0.5, 0.5), (1.0,)]
    assert uniform_weights(groups) == [(0.5, 0.5), (0.5, 0.5), (1.0,)]


def test_merge_plan_orders_what_it_is_given() -> None:
    plan = merge_plan([[5, 1], [4], [3, 0, 2]], [[0.9, 0.1], [1.0], [0.2, 0.3, 0.5]], [5, 4, 2], "svd", 2, "mean")
    assert plan == LayerPlan(
        experts=(2, 4, 5),
        merges=(
            Merge(into=2, members=(0, 2, 3), weights=(0.3, 0.5, 0.2), kernel="svd", rank=2),
            Merge(into=5, members=(1, 5), weights=(0.1, 0.9), kernel="svd", rank=2),
        ),
        router="mean",
    )
    assert merge_plan([[0], [1]], [[1.0], [1.0]], [0, 1], "svd", 2) == LayerPlan(), "groups of one: nothing to merge"


def test_keep_one_slices_or_maps() -> None:
    groups, scores = [(0, 3), (1, 2)], np.array([1.0, 5.0, 5.0, 2.0])
    assert keep_one(groups, scores) == LayerPlan(experts=(1, 3))
    assert keep_one(groups, scores, np.array([0.0, 0.0, 1.0, 0.0])) == LayerPlan(experts=(2, 3)), "the tie goes to 2"
    mapped = keep_one(groups, scores, router="map")
    assert mapped.experts == (1, 3) and mapped.rows == (0, 1, 2, 3) and mapped.expert_map == (1, 0, 0, 1)
    assert [merge.weights for merge in mapped.merges] == [(1.0, 0.0), (0.0, 1.0)]
    inventory = toy_inventory(moe_layers=1)
    assert Plan.of(inventory, [LayerPlan(), mapped]).layers[1] == mapped


def test_centres_prefer_weight_then_the_middle_of_the_group() -> None:
    points = np.array([0.0, 1.0, 2.5, 10.0, 11.0])
    similarity = -np.abs(points[:, None] - points[None, :])
    groups = [(0, 1, 2), (3, 4)]
    inside, overall = centrality(groups, similarity)
    assert list(inside) == [-3.5, -2.5, -4.0, -1.0, -1.0] and overall[3] > overall[4]
    assert centres(groups, uniform_weights(groups), similarity) == [1, 3], "the medoid; of two, the more typical"
    assert centres(groups, [(0.2, 0.2, 0.6), (0.4, 0.6)], similarity) == [2, 4]
    assert first_by((4, 2), np.zeros(5)) == 2
