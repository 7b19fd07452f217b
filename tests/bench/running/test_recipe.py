"""Recipes: several methods as one plan, which gives what applying them one after the other gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bench.applying.apply import apply
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.models.load import load_model
from bench.running.calibrator import Calibrator
from bench.running.recipe import Recipe, expanded
from bench.settings.method_settings import RecipeConfig
from bench.settings.stage_settings import CalibrationConfig
from bench.settings.strict import load_settings, validated
from bench.store.store import Store
from bench.text.corpus import parse
from methods.framework.errors import ConfigError, MoebenchError, RefusedError
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.framework.transfer import result
from methods.registry import method
from tests.support.inventories import toy_inventory
from tests.support.places import ROOT

SETTINGS = CalibrationConfig(corpus="pocket", sequences=4, length=32)


def recipe(*steps: dict[str, object]) -> Recipe:
    return Recipe.configured(validated({"title": "two steps", "steps": list(steps)}, RecipeConfig, "recipe"))


def decided(chosen: Recipe, folder: Path) -> tuple[Checkpoint, Plan, Stats]:
    checkpoint, store = Checkpoint.open("pocket-mixtral"), Store(folder)
    plan, moments = chosen.decide(Calibrator(checkpoint, SETTINGS, store, chosen.of_source), checkpoint, store)
    return checkpoint, plan, moments


def test_without_recalibration_a_step_reads_sliced_statistics(tmp_path: Path) -> None:
    chosen = recipe(
        {"name": "reap", "knobs": {"keep": 0.75}},
        {"name": "layer_drop", "knobs": {"keep": 0.83}},
        {"name": "frequency", "knobs": {"keep": 0.5}},
    )
    checkpoint, plan, _ = decided(chosen, tmp_path)
    corpus = parse("pocket", checkpoint, SETTINGS.sequences, SETTINGS.length, 0)
    stats = calibrate(checkpoint, corpus, {"gate_norm_moment", "moe_residual_cosine"})
    first = method("reap", keep=0.75).plan(checkpoint.inventory, stats)
    kept = {index: layer.experts for index, layer in enumerate(first.layers)}
    for index, layer in enumerate(plan.layers):
        if layer.drop == "none":
            assert layer.experts is not None and set(layer.experts) < set(kept[index] or ())
            counts = stats.layer("gate_norm_moment", index)[list(kept[index] or ()), 0, 0]
            best = [(kept[index] or ())[place] for place in np.argsort(-counts, kind="stable")[: len(layer.experts)]]
            assert sorted(best) == list(layer.experts)
    assert sum(layer.drop == "moe" for layer in plan.layers) == 1


def test_recalibration_equals_compressing_twice(tmp_path: Path) -> None:
    """The composed plan, applied once to the source, gives the very weights of two rounds of calibrate and apply."""
    chosen = recipe(
        {"name": "reap", "knobs": {"keep": 0.75}},
        {"name": "mone", "knobs": {"keep": 0.5}, "recalibrate": True},
    )
    checkpoint, plan, moments = decided(chosen, tmp_path / "store")
    once = apply(checkpoint, plan, tmp_path / "once", moments=moments)

    def stats_of(source: Checkpoint, needs: frozenset[str]) -> Stats:
        return calibrate(source, parse("pocket", source, SETTINGS.sequences, SETTINGS.length, 0), needs)

    reap, mone = method("reap", keep=0.75), method("mone", keep=0.5)
    first = reap.plan(checkpoint.inventory, stats_of(checkpoint, reap.measured))
    middle = Checkpoint.open(apply(checkpoint, first, tmp_path / "middle"))
    stats = stats_of(middle, mone.measured)
    second = mone.plan(middle.inventory, stats)
    twice = apply(middle, second, tmp_path / "twice", moments=stats)
    a, b = (load_model(path).state_dict() for path in (once, twice))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert plan != mone.plan(checkpoint.inventory, stats_of(checkpoint, mone.measured))


def test_statistics_come_back_to_the_coordinates_of_the_source() -> None:
    inventory = toy_inventory()
    merge = Merge(into=1, members=(1, 3), weights=(0.5, 0.5))
    layers = [LayerPlan(drop="block"), LayerPlan(experts=(0, 1), merges=(merge,)), LayerPlan(drop="moe")]
    plan = Plan.of(inventory, layers)
    assert len(result(plan, inventory).layers) == 2
    values = np.array([[1.0, 2.0], [3.0, 4.0]])
    stats = Stats({"routed_output_mean": (values, None), "coactivation": (values, None)})
    means = expanded(stats, "routed_output_mean", plan, inventory)
    assert means[0] is None and means[2] is None
    np.testing.assert_array_equal(means[1], [[1, 2], [3, 4], [0, 0], [3, 4]])
    pairs = expanded(stats, "coactivation", plan, inventory)[1]
    np.testing.assert_array_equal(pairs, [[1, 2, 0, 2], [3, 4, 0, 4], [0, 0, 0, 0], [3, 4, 0, 4]])


@pytest.mark.parametrize(
    ("steps", "reason"),
    [
        ([{"name": "hc_smoe"}, {"name": "reap"}], "share experts already"),
        ([{"name": "cka_merge"}, {"name": "reap"}], "measure it anew"),
        ([{"name": "reap", "knobs": {"keep": 0.75}}, {"name": "diep"}], "recalibrate: true"),
        ([{"name": "reap"}, {"name": "frequency", "knobs": {"keep": 0.1}}], "fewer than the 2"),
    ],
)
def test_what_does_not_go_together_is_refused(steps: list[dict[str, object]], reason: str, tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match=reason):
        decided(recipe(*steps), tmp_path)


def test_the_recipes_that_ship_are_valid() -> None:
    folder = ROOT / "sweeps" / "presets" / "recipes"
    configs = [load_settings(path, RecipeConfig) for path in sorted(folder.glob("*.yaml"))]
    chosen = [Recipe.configured(config) for config in configs]
    assert chosen and all(len(c.steps) > 1 or c.recovery is not None for c in configs), (
        "a recipe is more than one method"
    )


def test_sparsity_after_selection_uses_moments_of_the_selected_model(tmp_path: Path) -> None:
    chosen = recipe(
        {"name": "reap", "knobs": {"keep": 0.75}},
        {"name": "wanda", "knobs": {"keep": 0.5}, "recalibrate": True},
    )
    checkpoint, plan, moments = decided(chosen, tmp_path / "store")
    assert plan.stages == {"experts", "sparsity"} and plan.moments <= set(moments.values)
    written = Checkpoint.open(apply(checkpoint, plan, tmp_path / "out", moments=moments))
    zeros = [
        float((written.read(entry) == 0).float().mean())
        for entry in written.inventory.layers[0].with_role("expert.gate")
    ]
    assert len(zeros) == 6 and all(share == 0.5 for share in zeros)


def test_a_recipe_is_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("title: x\nsteps:\n  - {name: reap, recalibrat: true}\n")
    with pytest.raises(ConfigError, match="recalibrate"):
        load_settings(path, RecipeConfig)
    path.write_text("title: x\nsteps:\n  - {name: reap, knobs: {keep: 0.75}}\n  - {name: random}\n")
    chosen = Recipe.configured(load_settings(path, RecipeConfig))
    assert chosen.knobs["1.reap.keep"] == 0.75 and chosen.knobs["2.random.recalibrate"] is False
    assert chosen.measured == {"gate_norm_moment"} and not chosen.probing
    with pytest.raises(MoebenchError, match="reap"):
        Recipe.configured(validated({"title": "x", "steps": [{"name": "reep"}]}, RecipeConfig, "recipe"))
