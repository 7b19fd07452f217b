"""From groups of experts to a layer's plan: what methods that group and merge share.

*Groups* are disjoint, together they hold every expert of the layer, and each becomes one expert.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from methods.framework.allocation import expert_counts
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge, RouterRule
from methods.framework.method import Keep
from methods.framework.stats import Array

Groups = list[tuple[int, ...]]
"""Ascending members of each group; groups in the order of their first members."""

Partition = Callable[[list[int], int], Sequence[Sequence[int]]]
"""From experts and a number of blocks to that many blocks of those experts."""


def ordered(groups: Sequence[Sequence[int]]) -> Groups:
    """Return ``groups`` in the one order that ``Groups`` allows."""
    return sorted(tuple(sorted(int(member) for member in group)) for group in groups)


def grouped(inventory: Inventory, layer: int, keep: Keep, router: RouterRule, partition: Partition) -> Groups:
    """Return the groups of ``layer`` that leave it ``keep`` of its experts.

    Args:
        inventory: the model.
        layer: index of a MoE layer.
        keep: share of experts that remain, or its knots over the depth.
        router: how the router follows. With ``map`` any partition will do; otherwise a group-limited router needs the same
            number of experts in each of its own groups, so ``partition`` is asked for each of these by itself.
        partition: splits experts into blocks.

    Raises:
        RefusedError: fewer experts would remain than the router needs.
    """
    mapped = router == "map"
    count = expert_counts(inventory, keep, mapped)[layer]
    return within_router_groups(
        inventory.layers[layer].experts, count, 1 if mapped else inventory.router.groups, partition
    )


def within_router_groups(experts: int, count: int, router_groups: int, partition: Partition) -> Groups:
    """Return ``count`` groups of ``experts`` experts, equally many in each of the consecutive groups of the router.

    Args:
        experts: of the layer.
        count: groups wanted, a multiple of ``router_groups``.
        router_groups: consecutive groups of the router, of the same size.
        partition: makes a number of groups of some experts.
    """
    size = experts // router_groups
    groups: list[Sequence[int]] = []
    for start in range(0, experts, size):
        members = list(range(start, start + size))
        blocks = count // router_groups
        groups += [[member] for member in members] if blocks == size else partition(members, blocks)
    return ordered(groups)


def by_matrix(matrix: Array, split: Callable[[Array, int], Sequence[Sequence[int]]]) -> Partition:
    """Return the partition of any experts that ``split`` makes of their part of ``matrix``, shape (E, E)."""

    def parted(members: list[int], blocks: int) -> Sequence[Sequence[int]]:
        return [[members[place] for place in block] for block in split(matrix[np.ix_(members, members)], blocks)]

    return parted


def uniform_weights(groups: Sequence[Sequence[int]]) -> list[tuple[float, ...]]:
    """Return equal weights that add up to 1 in each group."""
    return [(1.0 / len(group),) * len(group) for group in groups]


def usage_weights(groups: Sequence[Sequence[int]], usage: Array) -> list[tuple[float, ...]]:
    """Return weights in proportion to ``usage``, adding up to 1 in each group; equal ones where nothing was used.

    Args:
        groups: members of each group.
        usage: non-negative use of each expert, such as its routed tokens, shape (E,).
    """
    weights: list[tuple[float, ...]] = []
    for group, uniform in zip(groups, uniform_weights(groups), strict=True):
        total = math.fsum(usage[list(group)])  # exactly rounded, so that it does not depend on the order of experts
        weights.append(tuple(float(usage[member]) / total for member in group) if total > 0.0 else uniform)
    return weights


def first_by(group: Sequence[int], *scores: Array) -> int:
    """Return the member with the largest first score; ties by the next score, in the end by the lower index."""
    return min(group, key=lambda member: (*(-float(score[member]) for score in scores), member))


def centrality(groups: Sequence[Sequence[int]], similarity: Array) -> tuple[Array, Array]:
    """Return how alike each expert is to the others of its group, and to all experts, both of shape (E,).

    The largest value of the first marks the medoid of a group. In a group of two both are equal: the second breaks the tie.

    Args:
        groups: members of each group.
        similarity: symmetric, shape (E, E); its diagonal is not read.
    """
    similarity = symmetric(similarity)
    experts = len(similarity)
    overall = np.array([math.fsum(similarity[i, j] for j in range(experts) if j != i) for i in range(experts)])
    inside = np.zeros(experts)
    for group in groups:
        for i in group:
            inside[i] = math.fsum(similarity[i, j] for j in group if j != i)
    return inside, overall


def symmetric(matrix: Array) -> Array:
    """Return the mean of ``matrix`` and its transpose in float64: equal to the last bit across the diagonal."""
    matrix = np.asarray(matrix, dtype=np.float64)
    mean: Array = (matrix + matrix.T) / 2.0
    return mean


def centres(groups: Sequence[Sequence[int]], weights: Sequence[Sequence[float]], similarity: Array) -> list[int]:
    """Return for each group the member with the largest weight; ties go to the medoid, then to the more typical expert.

    Args:
        groups: members of each group.
        weights: factor of each member, in the group's order.
        similarity: symmetric, shape (E, E).
    """
    factor = np.zeros(len(similarity))
    for group, factors in zip(groups, weights, strict=True):
        factor[list(group)] = factors
    return [first_by(group, factor, *centrality(groups, similarity)) for group in groups]


def merge_plan(
    groups: Sequence[Sequence[int]],
    weights: Sequence[Sequence[float]],
    into: Sequence[int],
    kernel: Literal["mean", "aligned", "svd"] = "mean",
    rank: int | None = None,
    router: RouterRule = "map",
) -> LayerPlan:
    """Return the plan of a layer in which each group becomes one expert, a weighted combination of its members.

    Args:
        groups: members of each group, in any order.
        weights: for each group, the factor of each member, in the group's order.
        into: for each group, the member in whose place the merged expert stands.
        kernel: how matrices are combined; see ``Merge``.
        rank: singular vectors that kernel ``svd`` keeps.
        router: how the router's rows follow.
    """
    merges = []
    for group, factors, place in zip(groups, weights, into, strict=True):
        if len(group) == 1:
            continue
        pairs = sorted((int(member), float(factor)) for member, factor in zip(group, factors, strict=True))
        members, ordered_factors = zip(*pairs, strict=True)
        merges.append(Merge(into=int(place), members=members, weights=ordered_factors, kernel=kernel, rank=rank))
    if not merges:
        return LayerPlan()
    return LayerPlan(
        experts=tuple(sorted(int(place) for place in into)),
        merges=tuple(sorted(merges, key=lambda merge: merge.into)),
        router=router,
    )


def keep_one(groups: Sequence[Sequence[int]], *scores: Array, router: Literal["slice", "map"] = "slice") -> LayerPlan:
    """Return the plan that keeps one expert of each group as it is: the first by ``scores`` (see ``first_by``).

    Args:
        groups: members of each group.
        scores: each of shape (E,); a later one breaks the ties of those before it.
        router: ``slice`` keeps the router row of that expert, ``map`` lets the rows of the whole group lead to it.
    """
    kept = [first_by(group, *scores) for group in groups]
    if router == "slice":
        return LayerPlan(experts=tuple(sorted(kept)))
    one_hot = [[float(member == expert) for member in group] for group, expert in zip(groups, kept, strict=True)]
    return merge_plan(groups, one_hot, kept, router="map")
