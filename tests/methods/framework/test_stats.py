"""The container of statistics: what methods may read, and coordinates after a plan."""

from __future__ import annotations

import numpy as np
import pytest

from methods.framework.errors import RefusedError, StatsError, UnknownNameError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Stats

MOMENTS = np.arange(4 * 9, dtype=np.float64).reshape(4, 3, 3)
STATS = Stats(
    {
        "gate_norm_moment": (None, MOMENTS, MOMENTS + 100),
        "moe_io_cosine": (None, np.array(0.25), np.array(0.5)),
        "block_cosine": (np.array(0.1), np.array(0.2), np.array(0.3)),
        "hidden_cosine": (np.arange(16, dtype=np.float64).reshape(4, 4),),
    },
    tokens=7,
    meta={"corpus": "x"},
)


def plan(*layers: LayerPlan) -> Plan:
    return Plan(family="toy", layers=layers)


def test_catalogue_is_well_formed():
    for name, spec in CATALOGUE.items():
        assert spec.name == name
        assert spec.definition and spec.unit
        assert set(spec.dims) <= set("EANMBDFRSPQUV")


def test_reading():
    assert STATS.layer("gate_norm_moment", 2)[0, 0, 1] == 101
    assert STATS.model("hidden_cosine").shape == (4, 4)
    with pytest.raises(StatsError, match="layer 0; its scope is moe"):
        STATS.layer("gate_norm_moment", 0)
    with pytest.raises(StatsError, match="layer 9"):
        STATS.layer("block_cosine", 9)
    with pytest.raises(StatsError, match="'weight_norm' is not at hand"):
        STATS.layer("weight_norm", 1)
    with pytest.raises(UnknownNameError, match="block_cosine"):
        STATS.layer("block_cosin", 1)


def test_only_hides_the_rest():
    view = STATS.only({"block_cosine", "weight_norm"})
    assert set(view.values) == {"block_cosine"}
    assert (view.tokens, view.meta) == (7, {"corpus": "x"})
    with pytest.raises(StatsError):
        view.layer("gate_norm_moment", 1)


def test_restricting_to_kept_experts_slices_the_expert_axis_alone():
    sliced = STATS.restricted(plan(LayerPlan(), LayerPlan(experts=(1, 3)), LayerPlan()))
    np.testing.assert_array_equal(sliced.layer("gate_norm_moment", 1), MOMENTS[[1, 3]])
    np.testing.assert_array_equal(sliced.layer("gate_norm_moment", 2), MOMENTS + 100)
    assert sliced.layer("moe_io_cosine", 1) == 0.25


def test_restricting_to_dropped_sublayers_and_blocks():
    sliced = STATS.restricted(plan(LayerPlan(drop="block"), LayerPlan(drop="moe"), LayerPlan()))
    assert [len(values) for values in sliced.values.values()] == [2, 2, 2, 1]
    with pytest.raises(StatsError):
        sliced.layer("gate_norm_moment", 0)
    assert sliced.layer("block_cosine", 0) == 0.2
    np.testing.assert_array_equal(sliced.layer("gate_norm_moment", 1), MOMENTS + 100)
    np.testing.assert_array_equal(sliced.model("hidden_cosine"), [[5, 6, 7], [9, 10, 11], [13, 14, 15]])


def test_every_axis_of_experts_is_sliced():
    square = np.arange(16.0).reshape(4, 4)
    tokens = np.arange(32.0).reshape(2, 4, 4)
    stats = Stats({"coactivation": (None, square, square), "token_gram": (None, tokens, tokens)})
    sliced = stats.restricted(plan(LayerPlan(), LayerPlan(experts=(1, 3)), LayerPlan()))
    np.testing.assert_array_equal(sliced.layer("coactivation", 1), [[5, 7], [13, 15]])
    np.testing.assert_array_equal(sliced.layer("token_gram", 1), tokens[:, [1, 3]][:, :, [1, 3]])
    np.testing.assert_array_equal(sliced.layer("coactivation", 2), square)


def test_statistics_of_merged_experts_are_refused_not_sliced():
    merge = Merge(into=0, members=(0, 2), weights=(0.5, 0.5))
    sliced = STATS.restricted(plan(LayerPlan(), LayerPlan(experts=(0, 1, 3), merges=(merge,)), LayerPlan()))
    with pytest.raises(RefusedError, match="'gate_norm_moment' describes experts that an earlier step merged"):
        sliced.layer("gate_norm_moment", 2)
    with pytest.raises(RefusedError):
        sliced.only({"gate_norm_moment"}).layer("gate_norm_moment", 1)
    assert sliced.layer("block_cosine", 0) == STATS.layer("block_cosine", 0)
