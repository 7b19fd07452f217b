"""Every method's own space opens, draws what the method accepts, and lands on a budget of bytes within one unit."""

from __future__ import annotations

import optuna
import pytest

from bench.laws.cases import case
from bench.laws.synthetic_probe import SyntheticProbe
from methods.framework.cost import cost_of, layer_costs
from methods.framework.errors import ConfigError, MoebenchError, RefusedError
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.registry import method_class, names
from sweeps.budget import Limits
from sweeps.knob_planner import KnobPlanner
from sweeps.planner import LayerPlanner, Planner
from sweeps.sweep_config import SweepConfig, parse_sweep

DRAWS = 20
BYTES = 0.7
WHOLE_LAYERS = {"layer_drop", "block_drop", "rtn", "gptq", "awq"}
"""Methods whose unit is a layer: gone or not, 4 bits or 8."""


def opened(name: str, budget: float | None, of: str = "bytes") -> tuple[SweepConfig, Planner]:
    kind = method_class(name)
    config = parse_sweep(
        {
            "name": "s",
            "model": "m",
            "method": name,
            "fixed": dict(kind.law_knobs),
            "budget": None if budget is None else {"of": of, "keep": budget},
            "objectives": [{"kind": "size", "of": "bytes"}],
        }
    )
    own = case("olmoe", experts=8)
    limits = Limits(own.inventory, config.budget)
    planner = LayerPlanner if config.layered else KnobPlanner
    return config, planner(
        config.steps, own.inventory, own.stats, limits, lambda: SyntheticProbe(own.inventory, own.stats)
    )


@pytest.mark.parametrize("name", names())
def test_drawn_trials_are_plans_of_the_method(name: str) -> None:
    _, planner = opened(name, None)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    refused: list[str] = []
    for _ in range(DRAWS):
        try:
            planner.drawn(study.ask(planner.distributions).params)
        except RefusedError as reason:
            refused.append(str(reason))
    assert len(refused) < 0.05 * DRAWS, refused


@pytest.mark.parametrize("name", names())
def test_budgets_of_bytes_are_met_within_one_unit(name: str) -> None:
    if not method_class(name).stores_less:
        with pytest.raises(ConfigError, match=r"zeros are stored like|stores what the source stores"):
            opened(name, BYTES)
        return
    _, planner = opened(name, BYTES)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=3))
    shares = []
    for _ in range(3):
        try:
            sizes = planner.drawn(study.ask(planner.distributions).params).sizes
        except MoebenchError as reason:
            pytest.fail(str(reason))
        shares.append(planner.limits.excess(sizes))
    assert max(shares) <= 0.0
    layer = max(part.bytes for part in layer_costs(planner.limits.inventory))
    unit = layer if name in WHOLE_LAYERS else layer / 8
    assert min(shares) > -unit / planner.limits.limits["bytes"], "room for a unit more"


@pytest.mark.parametrize(("of", "keep"), [("active_parameters", 0.95), ("flops", 0.98)])
def test_fewer_experts_per_token_meet_budgets_of_work(of: str, keep: float) -> None:
    _, planner = opened("lexi", keep, of)
    drawn = planner.drawn(optuna.create_study().ask(planner.distributions).params)
    spared = [layer.top_k for layer in drawn.plan.layers if layer.top_k is not None]
    assert planner.limits.excess(drawn.sizes) <= 0.0
    assert spared
    source = cost_of(planner.limits.inventory)
    assert drawn.sizes["bytes"] == source.bytes
    # One expert more in one layer would be too many.
    more = list(drawn.plan.layers)
    more[next(i for i, layer in enumerate(more) if layer.top_k)] = LayerPlan()
    assert planner.limits.excess(planner.limits.sizes(Plan.of(planner.limits.inventory, more))) > 0.0
