"""Parts of a record: how alike experts are, and what was merged."""

from __future__ import annotations

import numpy as np
import pytest

from bench.running.record_parts import SHOWN_EXPERTS, group_sizes, similarity_info
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Array, Stats
from tests.support.inventories import toy_inventory


def measured(model: Inventory, **values: Array) -> Stats:
    """Return statistics that have the same value in each MoE layer."""
    layers = range(len(model.layers))
    return Stats(
        {name: tuple(one if layer in model.moe_layers else None for layer in layers) for name, one in values.items()}
    )


def test_pairs_are_kept_in_hundredths_and_the_mean_leaves_out_the_diagonal() -> None:
    model = toy_inventory(experts=3)
    value = np.array([[1.0, 0.304, -0.2], [0.304, 1.0, 0.1], [-0.2, 0.1, 1.0]])
    stats = measured(model, output_cosine=value, output_cka=np.eye(3))
    first, second = similarity_info(stats, model, frozenset({"output_cosine", "gate_norm_moment"}))
    assert (first.statistic, first.experts) == ("output_cosine", 3)
    assert (first.layer, second.layer) == tuple(model.moe_layers)
    assert first.pairs == "30 -20 10" and first.mean == pytest.approx(0.068)
    both = similarity_info(stats, model, frozenset({"output_cosine", "output_cka"}))
    assert [one.statistic for one in both] == ["output_cka"] * 2 + ["output_cosine"] * 2
    assert similarity_info(stats, model, frozenset({"gate_norm_moment"})) == ()


def test_of_a_layer_with_very_many_experts_the_mean_is_kept_alone() -> None:
    experts = SHOWN_EXPERTS + 1
    model = toy_inventory(experts, moe_layers=1)
    (one,) = similarity_info(
        measured(model, output_cka=np.full((experts, experts), 0.5)), model, frozenset({"output_cka"})
    )
    assert (one.experts, one.mean, one.pairs) == (experts, 0.5, None)


def test_groups_count_the_experts_that_each_one_stands_for() -> None:
    merges = (
        Merge(into=0, members=(0, 3), weights=(0.5, 0.5)),
        Merge(into=1, members=(1, 2, 5), weights=(0.2, 0.4, 0.4)),
    )
    merged = LayerPlan(experts=(0, 1, 4), merges=merges, router="map")
    plan = Plan(family="mixtral", layers=(LayerPlan(experts=(0, 1)), merged))
    assert group_sizes(plan) == {1: (3, 2, 1)}
