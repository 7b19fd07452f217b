"""Every method's own space opens, draws what the method accepts, and lands on a budget of bytes within one unit."""

from __future__ import annotations

import optuna
import pytest

from bench.laws.cases import case
from bench.laws.synthetic_probe import SyntheticProbe
from methods.framework.cost import layer_costs
from methods.framework.errors import ConfigError, MoebenchError, RefusedError
from methods.registry import method_class, names
from sweeps.budget import Limits
from sweeps.knob_planner import KnobPlanner
from sweeps.planner import LayerPlanner, Planner
from sweeps.sweep_config import SweepConfig, parse_sweep

DRAWS = 20
BYTES = 0.7
WHOLE_LAYERS = {"layer_drop", "block_drop", "rtn", "gptq", "awq"}
"""Methods whose unit is a layer: gone or not, 4 bits or 8."""


def opened(name: str, budget: float | None) -> tuple[SweepConfig, Planner]:
    kind = method_class(name)
    config = parse_sweep(
        {
            "name": "s",
            "model": "m",
            "method": name,
            "fixed": dict(kind.law_knobs),
            "budget": None if budget is None else {"of": "bytes", "keep": budget},
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
    if method_class(name).stages == {"sparsity"}:
        with pytest.raises(ConfigError, match="zeros are stored like other weights"):
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
