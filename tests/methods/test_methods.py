"""Decisions of each method on statistics written by hand, and the traps of official codes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from methods import registry
from methods.framework.allocation import depth_shares, expert_counts, largest_remainder, top
from methods.framework.errors import ConfigError, RefusedError, StatsError, UnknownNameError
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from tests.support.inventories import toy_inventory


def layer_stats(name: str, per_layer: list[Any], **other: list[Any]) -> Stats:
    named: Mapping[str, list[Any]] = {name: per_layer, **other}
    return Stats(
        {
            key: tuple(None if value is None else np.asarray(value, dtype=float) for value in values)
            for key, values in named.items()
        },
        tokens=10,
    )


def kept(plan: Plan) -> list[tuple[int, ...] | None]:
    return [layer.experts for layer in plan.layers]


def moments(counts: list[float], gate: list[float], norm: list[float], gate_norm: list[float]) -> list[Any]:
    grid = np.zeros((4, 3, 3))
    grid[:, 0, 0], grid[:, 1, 0], grid[:, 0, 1], grid[:, 1, 1] = counts, gate, norm, gate_norm
    return [None, grid, grid[::-1]]


GRID = moments([8, 4, 2, 0], gate=[2, 3, 1, 0], norm=[8, 8, 6, 0], gate_norm=[4, 5, 3, 0])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("frequency", (0, 1)), ("soft_count", (0, 1)), ("ean", (0, 1)), ("reap", (1, 2)), ("man", (1, 2))],
)
def test_criteria_by_hand(name: str, expected: tuple[int, ...]) -> None:
    # REAP = 4/8, 5/4, 3/2, 0; MAN = 1, 2, 3, 0; an expert without tokens scores 0 and does not divide by zero
    plan = registry.method(name, keep=0.5).plan(toy_inventory(), layer_stats("gate_norm_moment", GRID))
    assert kept(plan)[1] == expected
    assert kept(plan)[2] == tuple(sorted(3 - e for e in expected)), "relabelled experts give the relabelled plan"


def test_msan_uses_the_squared_norm() -> None:
    grid = np.zeros((4, 3, 3))
    grid[:, 0, 0], grid[:, 0, 1], grid[:, 0, 2] = 4, [4, 3, 2, 1], [1, 2, 3, 4]
    stats = layer_stats("gate_norm_moment", [None, grid, grid])
    assert kept(registry.method("msan", keep=0.5).plan(toy_inventory(), stats))[1] == (2, 3)
    assert kept(registry.method("man", keep=0.5).plan(toy_inventory(), stats))[1] == (0, 1)


def test_ties_keep_the_lower_index() -> None:
    assert top(np.array([1.0, 1.0, 1.0, 1.0]), 2) == (0, 1)
    assert top(np.array([0.0, 1.0, 1.0, 0.0]), 2, groups=2) == (1, 2)


def test_weight_norm_sums_three_matrices() -> None:
    norms = [[9, 0, 0], [4, 4, 4], [0, 0, 10], [1, 1, 1]]
    plan = registry.method("weight_norm", keep=0.5).plan(
        toy_inventory(), layer_stats("weight_norm", [None, norms, norms])
    )
    assert kept(plan)[1] == (1, 2)


def test_random_is_nested_and_seeded() -> None:
    inventory, empty = toy_inventory(experts=16), Stats({})
    plans = {keep: registry.method("random", keep=keep, seed=3).plan(inventory, empty) for keep in (0.25, 0.5, 0.75)}
    for small, large in ((0.25, 0.5), (0.5, 0.75)):
        for a, b in zip(kept(plans[small])[1:], kept(plans[large])[1:], strict=True):
            assert a is not None and b is not None and set(a) < set(b)
    assert plans[0.5].digest != registry.method("random", keep=0.5, seed=4).plan(inventory, empty).digest
    assert kept(plans[0.5])[1] != kept(plans[0.5])[2], "each layer has a stream of its own"


def test_expert_drop_scores_and_scopes() -> None:
    probability = [None, [5, 4, 3, 2], [40, 0.1, 0.2, 39]]
    stats = layer_stats("router_probability", probability, gate_norm_moment=GRID)
    inventory = toy_inventory()
    layerwise = registry.method("expert_drop", keep=0.5)
    assert kept(layerwise.plan(inventory, stats)) == [None, (0, 1), (0, 3)]
    chosen = registry.method("expert_drop", keep=0.5, score="chosen")
    assert kept(chosen.plan(inventory, stats))[1] == (0, 1)
    overall = registry.method("expert_drop", keep=0.625, scope="global")
    assert kept(overall.plan(inventory, stats)) == [None, (0, 1, 2), (0, 3)], "the three smallest of all go"


def test_global_expert_drop_keeps_the_floor_and_the_budget() -> None:
    probability = [None, [1, 2, 3, 4], [50, 60, 70, 80]]
    stats = layer_stats("router_probability", probability)
    plan = registry.method("expert_drop", keep=0.5, scope="global").plan(toy_inventory(), stats)
    assert kept(plan) == [None, (2, 3), (2, 3)], "layer 1 stops at top-k, the rest comes from layer 2"
    deeper = registry.method("expert_drop", keep=0.5, scope="global", min_experts=1).plan(toy_inventory(), stats)
    assert kept(deeper) == [None, (3,), (1, 2, 3)]
    with pytest.raises(RefusedError, match=r"smallest is 0\.5"):
        registry.method("expert_drop", keep=0.4, scope="global").plan(toy_inventory(), stats)
    with pytest.raises(RefusedError, match="groups"):
        registry.method("expert_drop", scope="global").plan(toy_inventory(groups=2), stats)


def test_layer_drop_drops_the_most_similar() -> None:
    stats = layer_stats("moe_residual_cosine", [None, 0.9, 0.99], moe_io_cosine=[None, 0.5, 0.1])
    inventory = toy_inventory()
    assert [layer.drop for layer in registry.method("layer_drop", keep=0.5).plan(inventory, stats).layers] == [
        "none",
        "none",
        "moe",
    ]
    module = registry.method("layer_drop", keep=0.5, similarity="module").plan(inventory, stats)
    assert [layer.drop for layer in module.layers] == ["none", "moe", "none"]


def test_block_drop_discrete() -> None:
    stats = layer_stats("block_cosine", [0.2, 0.9, 0.99, 0.3])
    plan = registry.method("block_drop", keep=0.5).plan(toy_inventory(moe_layers=3), stats)
    assert [layer.drop for layer in plan.layers] == ["none", "block", "block", "none"]


@pytest.mark.parametrize("first", range(7))
def test_consecutive_block_drop_picks_the_planted_identities(first: int) -> None:
    # Eight layers turn the hidden state by 20 degrees each, but two successive ones do nothing, also the last two.
    angles = np.cumsum([0] + [0.0 if layer in (first, first + 1) else np.deg2rad(20) for layer in range(8)])
    cosine = np.cos(angles[:, None] - angles[None, :])
    stats = Stats({"hidden_cosine": (cosine,)})
    inventory = toy_inventory(moe_layers=7)
    plan = registry.method("block_drop", keep=0.75, variant="consecutive").plan(inventory, stats)
    assert [i for i, layer in enumerate(plan.layers) if layer.drop == "block"] == [first, first + 1]


def test_consecutive_block_drop_counts_over_all_layers_that_go() -> None:
    # Degrees that each layer turns the state by: alone, layer 1 turns least; of two successive ones, 4 and 5.
    angles = np.deg2rad(np.cumsum([0, 25, 0, 60, 20, 10, 10, 40, 40]))
    stats = Stats({"hidden_cosine": (np.cos(angles[:, None] - angles[None, :]),)})
    plan = registry.method("block_drop", keep=0.75, variant="consecutive").plan(toy_inventory(moe_layers=7), stats)
    assert [i for i, layer in enumerate(plan.layers) if layer.drop == "block"] == [4, 5]


def test_methods_read_only_what_they_declare() -> None:
    stats = layer_stats("block_cosine", [0.1, 0.2, 0.3])
    with pytest.raises(StatsError, match="gate_norm_moment"):
        registry.method("reap").plan(toy_inventory(), stats)


def test_keep_below_top_k_is_refused_with_the_smallest_value() -> None:
    with pytest.raises(RefusedError, match=r"smallest keep is 0\.5"):
        registry.method("random", keep=0.25).plan(toy_inventory(), Stats({}))


def test_depth_knots() -> None:
    assert depth_shares(0.5, 3) == [0.5, 0.5, 0.5]
    assert depth_shares((0.2, 0.8), 3) == pytest.approx([0.2, 0.5, 0.8])
    counts = expert_counts(toy_inventory(experts=10, moe_layers=3), (0.2, 0.8))
    assert list(counts.values()) == [2, 5, 8]
    with pytest.raises(RefusedError, match="knots"):
        registry.method("block_drop").model_copy(update={"keep": (0.5, 0.6)}).plan(
            toy_inventory(), layer_stats("block_cosine", [0.1, 0.2, 0.3])
        )


def test_largest_remainder() -> None:
    assert largest_remainder([1.5, 1.5, 1.5, 1.5]) == [2, 2, 1, 1]
    assert largest_remainder([0.3, 0.3, 0.4]) == [0, 0, 1]
    assert sum(largest_remainder([2.2] * 10)) == 22


def test_unknown_names_come_with_the_closest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'reap'"):
        registry.method_class("repa")
    with pytest.raises(UnknownNameError, match="did you mean 'keep'"):
        registry.method("reap", kep=0.5)
    with pytest.raises(ConfigError, match="keep"):
        registry.method("reap", keep=1.5)
    with pytest.raises(ConfigError, match="alpha"):
        registry.method("reap", alpha=0)
