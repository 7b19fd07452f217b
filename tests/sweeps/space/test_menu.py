"""The menu: options of layers, their exact sizes, and plans put together from them."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from methods.framework.cost import cost
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.registry import method
from sweeps.space.dimension import Layers
from sweeps.space.menu import QUANTITIES, Menu, MenuStep
from sweeps.space.statements import step_class
from tests.support.inventories import toy_inventory

INVENTORY = toy_inventory(experts=8, moe_layers=3)


def stats(inventory: Inventory = INVENTORY) -> Stats:
    rng = np.random.default_rng(0)
    layers = [layer.experts if layer.mlp == "moe" else None for layer in inventory.layers]
    return Stats(
        {
            "gate_norm_moment": tuple(None if e is None else rng.random((e, 3, 3)) + 0.1 for e in layers),
            "routed_tokens": tuple(None if e is None else rng.integers(1, 99, e).astype(float) for e in layers),
        }
    )


def step(name: str, knobs: dict[str, Any] | None = None, **layered: Layers) -> MenuStep:
    return MenuStep(step_class(name), knobs or {}, layered)


COUNTS = Layers(by="layer", low=0.25)
RANKS = Layers(by="layer", low=0.4, levels=4)
MATRICES = Layers(by="matrix", choices=(0.6, 0.8, 1.0))
SVD = {"ranks": "uniform"}


def recipes() -> dict[str, list[MenuStep]]:
    return {
        "experts": [step("reap", keep=COUNTS)],
        "ranks": [step("svd", SVD, keep=RANKS)],
        "matrices": [step("svd", SVD, keep=MATRICES)],
        "experts, then ranks": [step("reap", keep=COUNTS), step("svd", SVD, keep=RANKS)],
        "half of the experts, then matrices": [step("reap", {"keep": 0.5}), step("svd", SVD, keep=MATRICES)],
        "experts, then matrices": [step("reap", keep=COUNTS), step("svd", SVD, keep=MATRICES)],
        "dropped or not": [step("drop", drop=Layers(by="layer", choices=("none", "moe", "block")))],
        "experts per token, and of each layer": [
            step("reap", keep=COUNTS),
            step("top_k", top_k=Layers(by="layer", choices=(1, 2))),
        ],
        "dropped, or fewer experts": [
            step("reap", keep=COUNTS),
            step("drop", drop=Layers(by="layer", choices=("none", "moe"))),
        ],
        "experts and powers": [step("criterion", keep=COUNTS, alpha=Layers(by="layer", choices=(0, 1, 2)))],
    }


@pytest.mark.parametrize("name", recipes())
def test_sizes_of_every_assignment_are_those_of_its_plan(name: str) -> None:
    menu = Menu(recipes()[name], INVENTORY, stats())
    space, rng = menu.space, np.random.default_rng(1)
    for _ in range(12):
        levels = np.array([rng.integers(top + 1) for top in space.highest])
        true = asdict(cost(menu.plan(levels), INVENTORY))
        for quantity in QUANTITIES:
            # Active parameters round down once a layer, so parts of a layer may be off by less than one each.
            slack = 3 * len(menu.layers) if quantity in ("active_parameters", "flops") and "matrices" in name else 0
            scale = 2 * 2048 if quantity == "flops" else 1
            assert abs(space.size(quantity, levels) - true[quantity]) <= slack * scale, quantity
    assert menu.plan(space.highest) == Plan.identity(INVENTORY) or name.startswith("half")


def test_an_option_is_what_the_method_decides_there() -> None:
    menu = Menu([step("reap", keep=COUNTS)], INVENTORY, stats())
    assert menu.dials[0].options == (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
    plan = menu.plan(np.array([0, 2, 5]))
    shares = (2 / 8, 4 / 8, 7 / 8)
    assert plan == method("reap", keep=shares).plan(INVENTORY, stats())
    assert [axis.name for axis in menu.space.axes] == ["keep.layer.1", "keep.layer.2", "keep.layer.3"]


def test_matrices_take_their_columns_from_their_own_option() -> None:
    menu = Menu([step("svd", SVD, keep=MATRICES)], INVENTORY, stats())
    plan = menu.plan(np.array([0, 1, 2] * 3))
    small, middle = (method("svd", ranks="uniform", keep=(share,)).plan(INVENTORY, stats()) for share in (0.6, 0.8))
    for layer in (1, 2, 3):
        stated = plan.layers[layer].rank
        low, high = small.layers[layer].rank, middle.layers[layer].rank
        assert stated is not None and low is not None and high is not None
        expected = tuple((a[0], b[1], 0) for a, b in zip(low.ranks, high.ranks, strict=True))
        assert stated.ranks == expected


def test_what_a_method_refuses_is_no_option() -> None:
    menu = Menu([step("reap", keep=Layers(by="layer", choices=(0.1, 0.5, 1.0)))], INVENTORY, stats())
    assert menu.dials[0].options == (0.5, 1.0), "a tenth of 8 experts is fewer than the router needs"
    with pytest.raises(RefusedError, match="no option of keep is possible: keep="):
        Menu([step("reap", keep=Layers(by="layer", choices=(0.1, 0.12)))], INVENTORY, stats())


def test_too_many_combinations_are_an_error_with_a_remedy() -> None:
    fine = Layers(by="layer", low=0.1, levels=900)
    with pytest.raises(ConfigError, match=r"each layer would have .* give fewer `levels`"):
        Menu([step("reap", keep=COUNTS), step("svd", SVD, keep=fine)], INVENTORY, stats())


def test_counts_are_thinned_to_the_levels_that_are_asked_for() -> None:
    wide = toy_inventory(experts=64, moe_layers=1)
    options = Menu([step("reap", keep=Layers(by="layer", low=0.25, levels=5))], wide, stats(wide)).dials[0].options
    assert len(options) <= 5 and options[-1] == 1.0
    assert all((share * 64).is_integer() for share in options)


@pytest.mark.parametrize("name", recipes())
@pytest.mark.parametrize("share", [0.8, 0.9])
def test_projection_meets_the_limit_and_leaves_no_room_for_a_level_more(name: str, share: float) -> None:
    space = Menu(recipes()[name], INVENTORY, stats()).space
    limit = share * asdict(cost(Plan.identity(INVENTORY), INVENTORY))["bytes"]
    space, rng = replace(space, limits={"bytes": limit}), np.random.default_rng(2)
    for _ in range(5):
        levels = space.projected(rng.uniform(-1, 1, len(space.axes)) * space.highest)
        assert space.fits(levels)
        for axis in range(len(levels)):
            more = levels.copy()
            more[axis] += 1
            assert levels[axis] == space.highest[axis] or not space.fits(more)
        assert (space.projected(levels.astype(float)) == levels).all(), "what is on the limit stays"


def test_a_limit_below_the_smallest_plan_is_refused_with_its_size() -> None:
    space = replace(Menu([step("reap", keep=COUNTS)], INVENTORY, stats()).space, limits={"experts": 3.0})
    with pytest.raises(RefusedError, match=r"smallest plan of this space has 2 times the experts"):
        space.projected(space.highest.astype(float))
