"""Trials on a tiny model: measured, refused, failed, given back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import sweeps.knob_planner
import sweeps.losses
import sweeps.trials
from bench.applying.in_memory import realised
from bench.store.store import Store
from methods.framework.errors import EvaluationError, RefusedError
from methods.framework.plan import Plan
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from tests.support.tiny import tiny_tokens
from tests.support.tiny_sweeps import drawn, objectives, sweep


def test_scores_are_those_of_the_plan(home: Path, resident: Resident, tmp_path: Path) -> None:
    result = run_sweep(
        sweep(home, objectives=objectives(home, "nll", "size"), trials=4), store=tmp_path, resident=resident
    )
    assert result.count("complete") == 4
    windows = tiny_tokens(8, 16, seed=1)
    for row in result.rows:
        plan = Plan.loads((Store(tmp_path).plans / f"{row.plan}.json").read_text())
        assert sum(len(layer.experts or range(8)) for layer in plan.layers) == 12 == row.sizes["experts"]
        with realised(resident.model, resident.inventory, plan) as model, torch.no_grad():
            logits = model(windows).logits[:, :-1]
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
        assert row.scores["nll"] == pytest.approx(expected, rel=1e-5)


def test_equal_plans_are_measured_once(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    true_nll = sweeps.losses.nll
    monkeypatch.setattr(sweeps.losses, "nll", lambda *arguments: calls.append(1) or true_nll(*arguments))
    config = sweep(home, space={"b": "auto", "beta": "auto"}, fixed={"keep": 0.5, "alpha": 0}, trials=10)
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert 1 < len(calls) == len({row.plan for row in result.rows}) <= 6
    for row in result.rows:
        if row.same_as is not None:
            assert (row.plan, row.scores) == (result.rows[row.same_as].plan, result.rows[row.same_as].scores)


def test_a_budget_can_refuse_instead(home: Path, resident: Resident, tmp_path: Path) -> None:
    config = sweep(home, budget={"of": "experts", "keep": 0.6, "how": "refuse"}, sampler={"name": "random"}, trials=5)
    result = run_sweep(config, store=tmp_path, resident=resident)
    refused = [row for row in result.rows if row.state == "refused"]
    assert refused and any("above the budget of 0.6" in str(row.reason) for row in refused)
    assert all(row.sizes["experts"] <= 0.6 * 24 for row in result.rows if row.state == "complete")
    assert result.count("complete") == 5


def test_a_budget_that_nothing_meets_stops_the_sweep(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.trials, "REFUSALS", 4)
    with pytest.raises(RefusedError, match=r"4 trials were refused.*cannot be brought to 0\.1"):
        run_sweep(sweep(home, budget={"of": "experts", "keep": 0.1}), store=tmp_path, resident=resident)


def test_failures_stop_the_sweep_and_keep_what_is_complete(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_sweep(sweep(home, trials=2), store=tmp_path, resident=resident)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps.losses, "nll", lambda *_: np.array([float("nan")]))
        with pytest.raises(EvaluationError, match="objective nll is not a number"):
            run_sweep(sweep(home, trials=3), store=tmp_path, resident=resident)
    result = run_sweep(sweep(home, trials=3), store=tmp_path, resident=resident)
    assert (result.count("complete"), result.count("failed")) == (3, 3)


def test_ctrl_c_gives_the_trial_back(
    home: Path, resident: Resident, whole: SweepResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    run_sweep(sweep(home, trials=5), store=tmp_path, resident=resident)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps.knob_planner.KnobPlanner, "drawn", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_sweep(sweep(home), store=tmp_path, resident=resident)
    result = run_sweep(sweep(home), store=tmp_path, resident=resident)
    assert [row.state for row in result.rows] == ["complete"] * 5 + ["failed", "complete"]
    assert drawn(result.rows) == drawn(whole.rows)
