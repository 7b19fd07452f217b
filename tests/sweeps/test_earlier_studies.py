"""Best plans of earlier studies as starts: as they were, brought onto another budget, refused where the space is another."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

import sweeps.meter
from methods.framework.errors import ConfigError
from sweeps.journal import open_study
from sweeps.outcome import SweepResult, TrialRow
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from tests.support.tiny_sweeps import drawn, objectives, sweep


def layered(home: Path, **changes: Any) -> SweepConfig:
    base = {"method": "reap", "space": {"keep": {"by": "layer", "low": 0.25}}, "starts": {"table": False}, "trials": 6}
    return sweep(home, **{**base, **changes})


def after(home: Path, *studies: str, **changes: Any) -> SweepConfig:
    starts = {"table": False, "alike": False, "best": 3, "studies": studies}
    return layered(home, **{"name": "later", "starts": starts, "trials": 3, **changes})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def first(home: Path, resident: Resident, store: Path) -> SweepResult:
    return run_sweep(layered(home), store=store, resident=resident)


def best(result: SweepResult, count: int) -> list[TrialRow]:
    different = [row for row in result.rows if row.same_as is None]
    return sorted(different, key=lambda row: (row.scores["nll"], row.number))[:count]


def test_the_best_plans_are_tried_first(home: Path, resident: Resident, store: Path, first: SweepResult) -> None:
    config = after(home, "s", trials=4)
    result = run_sweep(config, store=store, resident=resident)
    assert [row.plan for row in result.rows[:3]] == [row.plan for row in best(first, 3)]
    starts = [trial.user_attrs.get("start") for trial in open_study(config, config.folder(store)).get_trials()]
    assert starts == [*(f"study s, trial {row.number}" for row in best(first, 3)), None]


def test_on_another_budget_they_are_brought_onto_it(
    home: Path, resident: Resident, store: Path, first: SweepResult
) -> None:
    for keep in (0.4, 0.75):
        config = after(home, "s", name=f"budget-{keep}", budget={"of": "experts", "keep": keep}, trials=2)
        result = run_sweep(config, store=store, resident=resident)
        for row, earlier in zip(result.rows, best(first, 2), strict=False):
            assert keep * 24 - 1 < row.sizes["experts"] <= keep * 24
            now, before = row.knobs["keep"], earlier.knobs["keep"]
            assert all((a <= b) if keep < 0.5 else (a >= b) for a, b in zip(now, before, strict=True)), (
                "its shape stays"
            )


def test_a_search_that_went_on_equals_one_that_was_not_interrupted(
    home: Path, resident: Resident, store: Path, first: SweepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = str(first.folder)  # a study is also found by its path
    whole = run_sweep(after(home, folder, name="whole", trials=5), store=store, resident=resident)
    original, calls = sweeps.meter.Meter.measured, 0

    def dies(self: sweeps.meter.Meter, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(sweeps.meter.Meter, "measured", dies)
    config = after(home, folder, name="parts", trials=5)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(config, store=store, resident=resident)
    parts = run_sweep(config, store=store, resident=resident)
    assert sorted(map(repr, drawn(parts.rows))) == sorted(map(repr, drawn(whole.rows)))


def test_other_studies_are_refused(home: Path, resident: Resident, store: Path, first: SweepResult) -> None:
    with pytest.raises(ConfigError, match=r"starts\.studies: there is no study 'none' in .*give the name of a study"):
        run_sweep(after(home, "none", name="a"), store=store, resident=resident)
    wider = {"keep": {"by": "layer", "low": 0.5}}
    with pytest.raises(
        ConfigError, match=r"study 's' searches another space: step 1 is .*'low': 0.25.*, here .*'low': 0.5"
    ):
        run_sweep(after(home, "s", name="b", space=wider), store=store, resident=resident)
    other = dataclasses.replace(resident, identity={**resident.identity, "model": "f" * 64})
    with pytest.raises(ConfigError, match=r"study 's' is of another model \(content .*, here ffff"):
        run_sweep(after(home, "s", name="c"), store=store, resident=other)
    with pytest.raises(ConfigError, match=r"starts\.studies needs a knob with `by: layer`"):
        sweep(home, starts={"studies": ["s"]})


def test_of_several_objectives_the_front_is_tried(home: Path, resident: Resident, store: Path) -> None:
    both = objectives(home, "nll", "size")
    front = run_sweep(layered(home, name="two", objectives=both, budget=None), store=store, resident=resident).front
    result = run_sweep(after(home, "two", name="one", budget=None, trials=1), store=store, resident=resident)
    assert result.rows[0].plan == min(front, key=lambda row: row.scores["nll"]).plan


def test_without_studies_the_identity_is_as_before(home: Path) -> None:
    assert "studies" not in layered(home).identity()["starts"]
    assert after(home, "s").identity()["starts"]["studies"] == ["s"]
