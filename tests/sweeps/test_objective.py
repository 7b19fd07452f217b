"""An objective of another distribution is minimised, and guarded as the others are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench.store.store import Store
from methods.framework.errors import ConfigError
from methods.framework.plan import Plan
from sweeps.objective import kinds
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.task_guard import check_objectives
from tests.support.distribution import install
from tests.support.tiny_sweeps import sweep

SLOPE = '''
"""How many experts more the last layer keeps than the first one."""

from typing import Literal

from pydantic import Field

from sweeps.objective import HeldOutObjective


class Part(HeldOutObjective):
    kind: Literal["slope"]
    scale: float = Field(default=1.0, gt=0)
    benchmark: str | None = None

    @property
    def label(self):
        return f"slope_x{self.scale:g}"

    @property
    def tasks(self):
        return () if self.benchmark is None else (self.benchmark,)

    def measure(self, resident):
        windows = resident.windows(self.windows)

        def slope(candidate):
            assert tuple(windows.shape) == (8, 16)
            first, *_, last = [layer.experts or range(8) for layer in candidate.plan.layers]
            return self.scale * (len(last) - len(first))

        return slope
'''


@pytest.fixture(autouse=True)
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, monkeypatch, "moebench.objectives", "slope", SLOPE)


def slope(home: Path, **changes: Any) -> list[dict[str, Any]]:
    windows = {"corpus": str(home / "held_out.json"), "sequences": 8, "length": 16, "seed": 0}
    return [{"kind": "slope", "windows": windows, **changes}]


def test_it_is_minimised(home: Path, resident: Resident, tmp_path: Path) -> None:
    config = sweep(home, objectives=slope(home, scale=2), trials=8)
    assert config.labels == ("slope_x2",) and config.directions == ("minimize",)
    asked = config.objectives[0].held_out
    assert asked is not None
    texts = {asked: resident.windows(sweep(home).objectives[0].held_out)}  # type: ignore[arg-type]  # nll has one
    result = run_sweep(config, store=tmp_path, resident=replace(resident, windows=texts.__getitem__))
    found = []
    for row in result.rows:
        layers = Plan.loads((Store(tmp_path).plans / f"{row.plan}.json").read_text()).layers
        found.append(2.0 * (len(layers[-1].experts or range(8)) - len(layers[0].experts or range(8))))
    assert [row.scores["slope_x2"] for row in result.rows] == found
    assert result.front[0].scores["slope_x2"] == min(found) < max(found)


def test_its_settings_are_checked_and_it_is_guarded(home: Path) -> None:
    with pytest.raises(ConfigError, match=r"objectives\.0\.scale: should be more than 0, found -1"):
        sweep(home, objectives=slope(home, scale=-1))
    calibration = {"corpus": str(home / "held_out.json"), "sequences": 8, "length": 16, "seed": 0}
    with pytest.raises(
        ConfigError, match="objective slope_x1 measures the windows that the statistics are measured on"
    ):
        check_objectives(sweep(home, objectives=slope(home), calibration=calibration))
    with pytest.raises(ConfigError, match="objective 'arc_easy' is a test set"):
        check_objectives(sweep(home, objectives=slope(home, benchmark="arc_easy")))
    check_objectives(sweep(home, objectives=slope(home)))


def test_every_objective_says_what_it_is() -> None:
    assert [kind.__module__ for kind in kinds()][:-1] == [
        f"sweeps.objectives.{name}" for name in ("esap", "kl", "nll", "perplexity", "size", "task")
    ]
    assert all(kind.__doc__ and {"measure", "by_window"} & set(vars(kind)) for kind in kinds()[:-1])
