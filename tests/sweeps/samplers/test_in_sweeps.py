"""Samplers of levels in a sweep from its file on: resumed as if uninterrupted, and refused where there is nothing to move."""

from __future__ import annotations

from pathlib import Path

import pytest

from methods.framework.errors import ConfigError
from sweeps.resident import Resident
from sweeps.study import run_sweep
from tests.support.tiny_sweeps import drawn, objectives, sweep

BY_LAYER = {"keep": {"by": "layer"}}


@pytest.mark.parametrize("name", ["local", "evopress", "evoesap", "cmaes"])
def test_a_resumed_sweep_draws_what_an_uninterrupted_one_does(
    name: str, home: Path, resident: Resident, tmp_path: Path
) -> None:
    def trials(count: int, store: str) -> list[tuple[object, ...]]:
        config = sweep(home, space=BY_LAYER, sampler={"name": name, "offspring": 3, "population": 4}, trials=count)
        return drawn(run_sweep(config, store=tmp_path / store, resident=resident).rows)

    whole = trials(9, "whole")
    trials(5, "stopped")
    assert trials(9, "stopped") == whole
    if name == "local":
        assert len({plan for _, plan, _ in whole}) == 9


def test_what_cannot_move_is_refused(home: Path) -> None:
    with pytest.raises(ConfigError, match="sampler evoesap needs a knob with `by: layer`"):
        sweep(home, sampler={"name": "evoesap"})
    with pytest.raises(ConfigError, match="sampler local has a single objective"):
        sweep(home, space=BY_LAYER, sampler={"name": "local"}, objectives=objectives(home, "nll", "size"))
