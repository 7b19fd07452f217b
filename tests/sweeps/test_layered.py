"""Searches whose layers choose for themselves: the score table, first points, the choice on other text, going on."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sweeps.losses
import sweeps.meter
from bench.applying.in_memory import realised
from bench.store.store import Store
from methods.framework.errors import ConfigError
from methods.framework.plan import Plan
from methods.registry import method
from sweeps.outcome import SweepResult
from sweeps.planner import in_depth
from sweeps.resident import Resident
from sweeps.scoring import Scoring
from sweeps.solving.table import read_table
from sweeps.starts import alike
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from sweeps.trials import meter_for, planner_for
from tests.support.tiny_sweeps import drawn, objectives, sweep

LAYERS = {"keep": {"by": "layer", "low": 0.25}}


def layered(home: Path, **changes: Any) -> SweepConfig:
    starts = {"best": 7}
    return sweep(home, **{"method": "reap", "space": LAYERS, "starts": starts, "trials": 8, **changes})


@pytest.fixture(scope="module")
def searched(home: Path, resident: Resident, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, SweepResult]:
    store = tmp_path_factory.mktemp("layered")
    return store, run_sweep(layered(home), store=store, resident=resident)


def loss(resident: Resident, plan: Plan, config: SweepConfig) -> float:
    windows = config.objectives[0].held_out
    assert windows is not None
    with realised(resident.model, resident.inventory, plan, resident.stats) as model:
        return float(sweeps.losses.nll(model, resident.windows(windows), 8).mean())


def test_damages_are_those_of_one_layer_alone(
    home: Path, resident: Resident, searched: tuple[Path, SweepResult]
) -> None:
    config = layered(home)
    table = read_table(config.folder(searched[0]) / "table.json")
    assert [len(unit.options) for unit in table.units] == [7, 7, 7] and table.unscored == 0
    base = loss(resident, Plan.identity(resident.inventory), config)
    assert table.base == pytest.approx(base, abs=1e-9)
    for layer, unit in enumerate(table.units):
        for option in unit.options:
            shares = [1.0] * 3
            shares[layer] = float(option.settings[f"keep.layer.{layer}"])  # type: ignore[arg-type]  # a share
            plan = method("reap", keep=tuple(shares)).plan(resident.inventory, resident.stats)
            assert option.damage == pytest.approx(loss(resident, plan, config) - base, abs=1e-9)


def test_first_points_are_all_alike_and_the_best_of_the_table(home: Path, searched: tuple[Path, SweepResult]) -> None:
    store, result = searched
    table = read_table(layered(home).folder(store) / "table.json")
    options = [unit.options for unit in table.units]
    possible = []
    for levels in itertools.product(*map(range, map(len, options))):
        chosen = [own[level] for own, level in zip(options, levels, strict=True)]
        experts = table.rest["experts"] + sum(option.sizes["experts"] for option in chosen)
        if experts <= 0.5 * table.source["experts"]:
            possible.append((math.fsum(option.damage or 0.0 for option in chosen), levels))
    best = sorted(possible)[:7]
    first, *others = [row for row in result.rows if row.state == "complete"]
    assert first.knobs == {"keep": [0.5] * 3}
    found = [tuple(row.parameters[f"keep.layer.{layer}"] for layer in range(3)) for row in others]
    assert found == [levels for _, levels in best]


def test_the_meter_measures_each_plan_once(
    home: Path, resident: Resident, searched: tuple[Path, SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, result = searched
    planner, meter = planner_for(layered(home), resident), meter_for(layered(home), resident, store)
    monkeypatch.setattr(sweeps.meter.Meter, "_scores", lambda *_: pytest.fail("measured again"))
    plan = Plan.loads((Store(store).plans / f"{result.rows[3].plan}.json").read_text())
    sizes = planner.limits.sizes(plan)
    assert meter.measured(plan, sizes, planner.limits.source).scores == result.rows[3].scores


def test_another_version_measures_again(
    home: Path, resident: Resident, searched: tuple[Path, SweepResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sweeps.trials

    known = sweeps.trials.computed_by(layered(home))
    plan = Plan.identity(resident.inventory)
    sizes = planner_for(layered(home), resident).limits.sizes(plan)
    measured: list[str] = []
    monkeypatch.setattr(
        sweeps.meter.Meter, "_scores", lambda self, plan, *_: measured.append(plan.digest) or {"nll": 1.0}
    )
    for changed in ({}, {"libraries": {"torch": "99"}}, {"code": {**known["code"], "plans in memory": "edited"}}):
        monkeypatch.setattr(sweeps.trials, "computed_by", lambda config, now=changed: {**known, **now})
        meter_for(layered(home), resident, searched[0]).measured(plan, sizes, sizes)
    assert len(measured) == 2, "what the study has measured serves, and each of the others measures"


@pytest.mark.parametrize("damage", ["{", '{"scores": {"nll": "nan"}}', '{"scores": {}}'])
def test_a_damaged_answer_is_measured_again(home: Path, resident: Resident, tmp_path: Path, damage: str) -> None:
    config = layered(home)
    planner, meter = planner_for(config, resident), meter_for(config, resident, tmp_path)
    plan = Plan.identity(resident.inventory)
    sizes = planner.limits.sizes(plan)
    before = meter.measured(plan, sizes, sizes)
    (path,) = (Store(tmp_path).cache / "objectives").glob("*.json")
    path.write_text(damage)
    after = meter.measured(plan, sizes, sizes)
    assert after.scores == before.scores and json.loads(path.read_text())["plan"] == plan.digest


def test_a_search_that_went_on_equals_one_that_was_not_interrupted(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = layered(home, trials=13)
    whole = run_sweep(config, store=tmp_path / "whole", resident=resident)
    original, calls = sweeps.meter.Meter._scores, 0

    def dies(self: sweeps.meter.Meter, *rest: Any) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls in (5, 24):  # in the table, and in a trial
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(sweeps.meter.Meter, "_scores", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run_sweep(config, store=tmp_path / "parts", resident=resident)
    parts = run_sweep(config, store=tmp_path / "parts", resident=resident)
    # A first point that was cancelled has a later number, though it is tried before those behind it in the queue.
    assert sorted(map(repr, drawn(parts.rows))) == sorted(map(repr, drawn(whole.rows)))


def test_workers_share_the_cells(home: Path, resident: Resident, tmp_path: Path) -> None:
    config = layered(home)
    planner, meter = planner_for(config, resident), meter_for(config, resident, tmp_path)
    from sweeps.planner import LayerPlanner

    assert isinstance(planner, LayerPlanner)
    scoring = Scoring(planner, meter, {}, "nll")
    seen: list[list[int]] = []
    for worker in range(2):
        done: list[int] = []
        scoring.measure(worker, 2, lambda count, of, done=done: done.append(count))
        seen.append(done)
    assert seen == [list(range(1, 19))] * 2
    assert len(list((Store(tmp_path).cache / "objectives").glob("*.json"))) == 18


def test_the_choice_is_made_on_other_text_and_reported_on_a_third(home: Path, tmp_path: Path) -> None:
    text = tmp_path / "more.json"
    tokens = np.random.default_rng(5).integers(3, 150, (24, 16)).tolist()
    text.write_text(json.dumps(tokens))
    windows = {"corpus": str(text), "sequences": 8, "length": 16}
    final = {"choose": {**windows, "seed": 1}, "top": 4}
    with pytest.raises(ConfigError, match=r"final: choose, report and the objective need windows of their own"):
        layered(home, final={**final, "report": final["choose"]})
    with pytest.raises(ConfigError, match="report needs choose"):
        layered(home, final={"report": final["choose"]})
    config = layered(home, final=final)
    result = run_sweep(config, store=tmp_path)
    choice = json.loads((result.folder / "choice.json").read_text())
    assert len(choice["trials"]) == 4
    ranked = sorted(choice["trials"], key=lambda row: row["choice"])
    assert choice["chosen"] == ranked[0]["trial"]
    assert [row.number for row in result.front] == [choice["chosen"]]
    assert json.loads((result.folder / "front.json").read_text())["front"][0]["trial"] == choice["chosen"]


def test_windows_of_the_choice_are_no_windows_of_the_search(home: Path, tmp_path: Path) -> None:
    same = {"corpus": str(home / "held_out.json"), "sequences": 8, "length": 16, "seed": 7}
    with pytest.raises(ConfigError, match=r"final\.choose: 8 of 8 held-out windows are also windows of nll"):
        run_sweep(layered(home, final={"choose": same}), store=tmp_path)


def test_without_a_budget_the_frontier_is_tried(home: Path, resident: Resident, tmp_path: Path) -> None:
    config = layered(home, budget=None, objectives=objectives(home, "nll", "size"), trials=9)
    result = run_sweep(config, store=tmp_path, resident=resident)
    kept = [row.scores["bytes_kept"] for row in result.rows]
    assert result.front and min(kept) < 0.6 and len(set(kept)) > 3


def test_values_of_layers_and_matrices_are_lists_over_the_depth() -> None:
    values = {"keep.layer.1.gate": 0.5, "keep.layer.1.up": 0.6, "keep.layer.2.gate": 0.7, "keep.layer.2.up": 0.8}
    assert in_depth(values) == {"keep.gate": (0.5, 0.7), "keep.up": (0.6, 0.8)}
    assert in_depth({"1.keep.layer.0": 1.0, "1.keep.layer.10": 0.5}) == {"1.keep": (1.0, 0.5)}


def test_all_alike_is_on_the_budget(home: Path, resident: Resident) -> None:
    config = layered(home, budget=[{"of": "bytes", "keep": 0.7}, {"of": "experts", "keep": 0.6}])
    planner = planner_for(config, resident)
    space = planner.space({})  # type: ignore[attr-defined]  # of layers
    levels = alike(space)
    assert space.fits(levels) and levels.max() - levels.min() <= 1


def test_steps_are_searched_together(home: Path, resident: Resident, tmp_path: Path) -> None:
    ranks = {"keep": {"by": "layer", "choices": [0.5, 0.8, 1.0]}}
    recipe = [
        {"method": "reap", "space": {"keep": {"by": "layer", "choices": [0.5, 0.75, 1.0]}}},
        {"method": "svd", "fixed": {"ranks": "uniform"}, "space": ranks},
    ]
    config = sweep(
        home, method=None, space={}, recipe=recipe, budget={"of": "routed_parameters", "keep": 0.5}, trials=9
    )
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert result.count("complete") == 9
    assert {knob: len(values) for knob, values in result.rows[0].knobs.items()} == {"1.keep": 3, "2.keep": 3}
    for row in result.rows:
        plan = Plan.loads((Store(tmp_path).plans / f"{row.plan}.json").read_text())
        assert row.scores["nll"] == pytest.approx(loss(resident, plan, config), abs=1e-9)
        assert row.sizes["routed_parameters"] <= 0.5 * 3 * 8 * 3 * 64 * 32
