"""Measured times as sizes: blocks in their stored form, sums over layers, what is kept, a whole forward pass beside the sum."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

import sweeps.latencies
from bench.applying.in_memory import realised
from bench.applying.resident_layer import ResidentLayer
from bench.records.record import Interval
from bench.store.store import Store
from methods.framework.cost import cost
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.inside import LowRank
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from sweeps.latencies import Latencies, prompts
from sweeps.latency import Latency
from sweeps.planner import LayerPlanner
from sweeps.resident import Resident
from sweeps.solving.table import read_table
from sweeps.space.levels import Axis, LevelSpace
from sweeps.stopwatch import PHASES, Profile, Profiler, Stopwatch, requests
from sweeps.stored_blocks import stored_block, stored_form
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from sweeps.trials import planner_for
from tests.support.tiny_sweeps import objectives, sweep

LATENCY = Latency(batch=2, prompt=64, generate=4, repeats=3)
FEW = tuple(range(0, 32, 2))
MERGED = LayerPlan(
    experts=(0, 2, 3), merges=(Merge(into=0, members=(0, 1), weights=(0.5, 0.5)),), constants=(4,), router="map"
)
PLANS = {
    "experts": LayerPlan(experts=(1, 3, 6)),
    "top_k": LayerPlan(top_k=1),
    "rank": LayerPlan(rank=LowRank(ranks=((4, 0, 8),) * 8)),
    "channels": LayerPlan(experts=(0, 5, 7), channels=(FEW,) * 3),
    "map": MERGED,
}


def timed(home: Path, **changes: Any) -> SweepConfig:
    """Return a search of shares and experts of a token, by layer, with a budget of time."""
    recipe = [
        {
            "method": "svd",
            "fixed": {"ranks": "uniform"},
            "space": {"keep": {"by": "layer", "choices": [0.3, 0.6, 1.0]}},
        },
        {"method": "top_k", "space": {"top_k": {"by": "layer", "choices": [1, 2]}}},
    ]
    base = {"method": None, "space": {}, "recipe": recipe, "budget": {"of": "milliseconds", "keep": 0.8}}
    return sweep(home, **{**base, "latency": LATENCY.model_dump(), "trials": 6, "starts": {"best": 2}, **changes})


@pytest.fixture
def faked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Times that follow from the plan: whole 10 ms, layers 3, blocks 2, norms 0.1; decoding half of it. Lists what was run."""
    asked: list[str] = []

    def profile(self: Profiler) -> Profile:
        asked.append("profile")
        parts = [{"prefill": value, "decode": value / 2} for value in (10.0, 3.0, 2.0, 0.1)]
        return Profile(parts[0], *([part] * 3 for part in parts[1:]))

    def ratios(self: Profiler, index: int, block: torch.nn.Module, inputs: Any) -> dict[str, Interval]:
        asked.append(f"layer {index}")
        weights = [parameter.numel() for parameter in block.parameters()]
        # Many small matrices take longer than few large ones, as in truth.
        share = sum(weights) / 60_000 + len(weights) / 100 + index / 10
        return {phase: Interval(median=share, low=share, high=share, n=3) for phase in PHASES}

    monkeypatch.setattr(Profiler, "profile", profile)
    monkeypatch.setattr(Profiler, "ratios", ratios)
    return asked


def times(home: Path, resident: Resident, store: Path) -> Latencies:
    ids = prompts(resident, timed(home).labelled, LATENCY)
    return Latencies(resident, LATENCY, ids, Store(store))


@pytest.mark.parametrize("name", PLANS)
def test_a_block_holds_what_the_plan_stores(resident: Resident, name: str) -> None:
    own = PLANS[name]
    plan = Plan.of(resident.inventory, [LayerPlan(), own, LayerPlan()])
    block = stored_block(resident.model, resident.inventory, 1, own)
    before = sum(
        parameter.numel() for parameter in ResidentLayer(resident.model, resident.inventory, 1).block.parameters()
    )
    counted = [cost(one, resident.inventory).parameters for one in (plan, Plan.identity(resident.inventory))]
    assert sum(parameter.numel() for parameter in block.parameters()) - before == counted[0] - counted[1]
    hidden = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.isfinite(block(hidden)).all()


def test_the_router_of_a_block_is_that_of_the_plan(resident: Resident) -> None:
    hidden = torch.randn(7, 64, generator=torch.Generator().manual_seed(0))
    plan = Plan.of(resident.inventory, [LayerPlan(), PLANS["experts"], LayerPlan()])
    new = stored_block(resident.model, resident.inventory, 1, PLANS["experts"])
    with realised(resident.model, resident.inventory, plan) as model, torch.no_grad():
        _, weights, chosen = ResidentLayer(model, resident.inventory, 1).router()(hidden)
        _, own, places = new.gate(hidden)  # type: ignore[operator]  # the router of OLMoE
    kept = torch.tensor(PLANS["experts"].experts)
    assert torch.equal(kept[places], chosen) and torch.allclose(own, weights)


def test_a_model_in_stored_form_is_as_before_afterwards(resident: Resident) -> None:
    before = {name: id(parameter) for name, parameter in resident.model.named_parameters()}
    plan = Plan.of(resident.inventory, [PLANS["rank"], LayerPlan(drop="moe"), LayerPlan(drop="block")])
    with stored_form(resident.model, resident.inventory, plan) as model:
        assert len(model.base_model.layers) == 2
        requests(model, torch.ones(1, 4, dtype=torch.long), 2, Stopwatch(model.device))
    assert {name: id(parameter) for name, parameter in resident.model.named_parameters()} == before


def test_times_add_up_over_layers(home: Path, resident: Resident, tmp_path: Path, faked: list[str]) -> None:
    found = times(home, resident, tmp_path)
    planner = planner_for(timed(home), resident, found)
    assert isinstance(planner, LayerPlanner)
    space, menu = planner.space({}), planner.menu({})
    assert found.source == {"microseconds": 30_000, "prefill_microseconds": 10_000, "decode_microseconds": 5_000}
    assert space.rest["prefill_microseconds"] == 1000
    rng = np.random.default_rng(0)
    for _ in range(5):
        levels = rng.integers(space.highest + 1)
        expected = found.plan(menu.plan(levels).layers)
        assert space.size("prefill_microseconds", levels) == pytest.approx(1000 * expected["prefill"], abs=3)
        assert space.size("decode_microseconds", levels) == pytest.approx(1000 * expected["decode"], abs=3)
        whole = 1000 * (expected["prefill"] + 4 * expected["decode"])
        assert space.size("microseconds", levels) == pytest.approx(whole, abs=3)
    assert space.size("microseconds", space.highest) == 30_000


def test_what_goes_takes_no_time(home: Path, resident: Resident, tmp_path: Path, faked: list[str]) -> None:
    found = times(home, resident, tmp_path)
    layers = [LayerPlan(drop="moe"), LayerPlan(drop="block"), LayerPlan()]
    assert found.plan(layers) == pytest.approx({"prefill": 10 - 2.1 - 3, "decode": 5 - 1.05 - 1.5})


def test_matrices_of_a_layer_add_up(home: Path, resident: Resident, tmp_path: Path, faked: list[str]) -> None:
    ranks = {"keep": {"by": "matrix", "choices": [0.4, 1.0]}}
    config = timed(home, method="svd", fixed={"ranks": "uniform"}, space=ranks, recipe=())
    found = times(home, resident, tmp_path)
    planner = planner_for(config, resident, found)
    assert isinstance(planner, LayerPlanner)
    space, menu = planner.space({}), planner.menu({})
    assert len(space.units) == 9
    assert space.size("prefill_microseconds", space.highest) == pytest.approx(10_000, abs=9)
    one = space.highest.copy()
    one[4] = 0  # up of layer 1 alone
    expected = found.plan(menu.plan(one).layers)["prefill"]
    assert space.size("prefill_microseconds", one) == pytest.approx(1000 * expected, abs=5)


def test_each_option_is_timed_once_on_a_machine(
    home: Path, resident: Resident, tmp_path: Path, faked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def added() -> dict[str, Any]:
        found = times(home, resident, tmp_path)
        planner_for(timed(home), resident, found).distributions  # noqa: B018  # asks for the space
        return found.identity

    first = added()
    assert faked.count("profile") == 1 and len(faked) == 1 + 3 * 5
    assert added() == first and len(faked) == 16
    for name, value in (("processor", "another machine"), ("versions", {"torch": "99"})):
        monkeypatch.setattr(sweeps.latencies, name, lambda *_, now=value: now)
        before = len(faked)
        assert added() != first and len(faked) == before + 16


def test_a_budget_of_milliseconds_is_met(home: Path, resident: Resident, tmp_path: Path, faked: list[str]) -> None:
    config = timed(home, objectives=[*objectives(home, "nll"), {"kind": "size", "of": "decode_milliseconds"}])
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert result.count("complete") == 6
    for row in result.rows:
        assert row.sizes["microseconds"] <= 0.8 * 30_000
        assert row.scores["decode_milliseconds_kept"] == row.sizes["decode_microseconds"] / 5000
    table = read_table(config.folder(tmp_path) / "table.json")
    assert table.source["microseconds"] == 30_000 and len(table.units[0].options) == 6


def test_times_of_another_machine_do_not_mix(
    home: Path, resident: Resident, tmp_path: Path, faked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(timed(home, trials=2), store=tmp_path, resident=resident)
    monkeypatch.setattr(sweeps.latencies, "processor", lambda: "another machine")
    with pytest.raises(ConfigError, match=r"begun with other times of options \(device: was .*, is 'another machine'"):
        run_sweep(timed(home, trials=3), store=tmp_path, resident=resident)


def test_times_need_layers_that_choose(home: Path) -> None:
    with pytest.raises(ConfigError, match="milliseconds are measured for options of layers"):
        sweep(home, budget={"of": "prefill_milliseconds", "keep": 0.5})
    assert sweep(home).timed is None and timed(home, latency=None).timed == Latency()


def test_an_assignment_is_found_where_lower_levels_are_slower() -> None:
    axes = tuple(Axis(f"keep.layer.{unit}", unit, (0, 1, 2)) for unit in range(3))
    parts = tuple(np.array(part) for part in ([9.0, 2.0, 5.0], [9.0, 7.0, 3.0], [1.0, 4.0, 8.0]))
    space = LevelSpace(axes, ("a", "b", "c"), {"time": parts}, {"time": 1.0}, {"time": 9.0})
    found = space.projected(np.array([0.0, 0.0, 2.0]))
    assert space.fits(found) and found.tolist() == [1, 2, 0]
    with pytest.raises(RefusedError, match=r"the smallest plan of this space has 1\.17 times the time"):
        LevelSpace(axes, ("a", "b", "c"), {"time": parts}, {"time": 1.0}, {"time": 6.0}).projected(np.zeros(3))


def test_a_whole_forward_takes_the_predicted_time(home: Path, resident: Resident, tmp_path: Path) -> None:
    """Nothing is faked here. The bounds are wide, since other processes share the machine; a part that is left out of the sum,
    or counted twice, is further off."""
    latency = Latency(batch=4, prompt=64, generate=4, repeats=9)
    ids = prompts(resident, timed(home).labelled, latency)
    found = Latencies(resident, latency, ids, Store(tmp_path))
    plan = Plan.of(resident.inventory, [LayerPlan(drop="moe"), LayerPlan(drop="block"), PLANS["channels"]])
    predicted, source = found.plan(plan.layers), found.profile.whole
    watch, shares = Stopwatch(resident.model.device), []
    for _ in range(15):
        before = requests(resident.model, ids, 4, watch)
        with stored_form(resident.model, resident.inventory, plan) as model:
            shares.append({phase: value / before[phase] for phase, value in requests(model, ids, 4, watch).items()})
    for phase in PHASES:
        ratio = predicted[phase] / source[phase] / median(share[phase] for share in shares)
        assert 0.65 < ratio < 1.5, f"{phase}: predicted over measured {ratio:.2f}"
