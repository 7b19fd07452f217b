"""RCO: slopes are derivatives of the mixture of outputs, and the search stays on the budget."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.applying.in_memory import realised
from bench.applying.resident_layer import ResidentLayer
from methods.framework.errors import RefusedError
from sweeps.gradient_search import GradientSearch, searched
from sweeps.losses import divergence, final_states
from sweeps.option_slopes import OptionSlopes, Slopes
from sweeps.planner import LayerPlanner
from sweeps.resident import Resident
from sweeps.samplers.moves import uniform
from sweeps.samplers.relaxed import expected
from sweeps.space.levels import Levels
from sweeps.trials import planner_for
from tests.support.landscapes import damage, level_space
from tests.support.tiny_sweeps import sweep

STEP = 1e-2


@pytest.fixture(scope="module")
def planner(home: Path, resident: Resident) -> LayerPlanner:
    found = planner_for(sweep(home, method="criterion", space={"keep": {"by": "layer"}}), resident)
    assert isinstance(found, LayerPlanner)
    return found


def windows(home: Path, resident: Resident) -> torch.Tensor:
    (text,) = [one.held_out for one in sweep(home).objectives if one.held_out is not None]
    return resident.windows(text)[:2]


def test_slopes_are_the_derivatives_of_the_mixture(home: Path, resident: Resident, planner: LayerPlanner) -> None:
    """Loss with y + e y_k in place of a layer's output y, its derivative at e = 0 by central differences."""
    text = windows(home, resident)
    base = final_states(resident.model, text, 8)
    space = planner.space({})
    levels = uniform(space)
    oracle = OptionSlopes(planner, resident, text)
    found = oracle.at(levels)
    plan = planner.at(levels, {}).plan
    for unit, layer in enumerate(oracle.layers[:2]):
        block = ResidentLayer(resident.model, resident.inventory, layer).block
        for level in (0, int(levels[unit]), int(space.highest[unit])):
            other = levels.copy()
            other[unit] = level
            inputs: list[torch.Tensor] = []
            with realised(resident.model, resident.inventory, plan, resident.stats):
                hook = block.register_forward_hook(partial(_keep, inputs))
                divergence(resident.model, text, base, 8)
                hook.remove()
            with (
                realised(resident.model, resident.inventory, planner.at(other, {}).plan, resident.stats),
                torch.no_grad(),
            ):
                added = block(inputs[0])
            values = []
            for step in (STEP, -STEP):
                with realised(resident.model, resident.inventory, plan, resident.stats):
                    hook = block.register_forward_hook(partial(_mix, step, added))
                    values.append(float(divergence(resident.model, text, base, 8).mean()))
                    hook.remove()
            slope = (values[0] - values[1]) / (2 * STEP)
            assert found.slopes[unit][level] == pytest.approx(slope, rel=0.05, abs=2e-5)
    assert found.value == pytest.approx(float(divergence_of(resident, planner, levels, text, base)), rel=1e-5)
    assert not any(parameter.grad is not None for parameter in resident.model.parameters())
    assert all(parameter.requires_grad for parameter in resident.model.parameters())


def _keep(inputs: list[torch.Tensor], module: object, given: tuple[torch.Tensor], output: torch.Tensor) -> None:
    inputs.append(given[0])


def _mix(step: float, added: torch.Tensor, module: object, given: object, output: torch.Tensor) -> torch.Tensor:
    return output + step * added


def divergence_of(
    resident: Resident, planner: LayerPlanner, levels: Levels, text: torch.Tensor, base: torch.Tensor
) -> float:
    with realised(resident.model, resident.inventory, planner.at(levels, {}).plan, resident.stats):
        return float(divergence(resident.model, text, base, 8).mean())


def test_passes_are_counted(home: Path, resident: Resident, planner: LayerPlanner) -> None:
    text = windows(home, resident)
    all_options, few = OptionSlopes(planner, resident, text), OptionSlopes(planner, resident, text, 3)
    levels = planner.space({}).highest
    options = int(levels.max()) + 1
    whole = all_options.at(levels).forwards
    share = (whole - 3.0) / (options * len(all_options.layers))
    assert 0 < share * len(all_options.layers) < 1, "layers are a part of the model"
    assert few.at(levels).forwards == pytest.approx(3.0 + 3 * len(few.layers) * share)
    assert few.forwards >= few.at(levels).forwards
    assert few.at(levels).slopes[0][0] == pytest.approx(all_options.at(levels).slopes[0][0])


def bowl(space_seed: int) -> tuple[GradientSearch, object]:
    space = level_space(axes=5, levels=6, weights=(1, 3, 2, 5, 1))
    value = damage(space, space_seed)

    def slopes_at(levels: Levels, step: int) -> Slopes:
        grids = []
        for axis in range(5):
            grid = []
            for level in range(6):
                other = levels.copy()
                other[axis] = level
                grid.append(value(other))
            grids.append(np.array(grid))
        return Slopes(value(levels), tuple(grids), 1.0)

    return GradientSearch(space, 0, 40), slopes_at


def test_every_step_stays_on_the_budget() -> None:
    search, slopes_at = bowl(0)
    for _ in range(20):
        levels, _ = search.step(slopes_at)  # type: ignore[arg-type]  # as above
        assert search.space.fits(levels)
        assert expected(search.alpha, search.sizes) == pytest.approx(1.0, rel=1e-9)


def test_it_goes_down_and_is_the_same_each_time() -> None:
    for seed in range(3):
        (search, slopes_at), (again, _) = bowl(seed), bowl(seed)
        space, value = search.space, damage(search.space, seed)
        found = [levels.tolist() for levels in searched(search, slopes_at, 3)]  # type: ignore[arg-type]  # as above
        assert found == [levels.tolist() for levels in searched(again, slopes_at, 3)]  # type: ignore[arg-type]
        plans = [np.array(one) for one in np.ndindex(*(6,) * 5) if space.fits(np.array(one))]
        best, even = min(map(value, plans)), value(uniform(space))
        assert min(value(np.array(levels)) for levels in found) < best + (even - best) / 3


def test_one_budget_is_needed() -> None:
    space = level_space()
    with pytest.raises(RefusedError, match="one budget"):
        GradientSearch(replace(space, limits={}), 0, 5)
