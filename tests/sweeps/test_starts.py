"""What a search of layers begins with: the score table, or shapes over the depth where the table is too much."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sweeps.starts
import sweeps.trials
from sweeps.planner import LayerPlanner
from sweeps.resident import Resident
from sweeps.samplers.moves import MANY, shapes
from sweeps.starts import Starts, alike
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig
from sweeps.trials import planner_for
from tests.support.tiny_sweeps import sweep


@pytest.mark.parametrize(
    ("units", "trials", "instead"),
    [(30, 96, True), (30, 119, True), (30, 120, False), (6, 8, False), (MANY - 1, 1, False), (MANY, 47, True)],
)
def test_shapes_take_the_place_of_a_table_that_takes_more_than_half(units: int, trials: int, instead: bool) -> None:
    settled = Starts().settled(units, trials)
    assert (settled.table, settled.shapes) == (not instead, instead)
    assert Starts(shapes=True).settled(units, trials).table, "both, where both are asked for"
    assert Starts(shapes=False).settled(units, trials).table
    assert not Starts(table=False).settled(units, trials).shapes, "nothing is put in the place of no table"


def test_the_default_leaves_ids_of_earlier_studies_as_they_are() -> None:
    assert "shapes" not in Starts().model_dump() and Starts(shapes=True).model_dump()["shapes"] is True


def layered(home: Path) -> SweepConfig:
    return sweep(home, method="reap", space={"keep": {"by": "layer", "low": 0.25}}, starts={}, trials=5)


def test_a_search_that_cannot_afford_the_table_begins_with_shapes(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, planner = layered(home), planner_for(layered(home), resident)
    assert isinstance(planner, LayerPlanner)
    monkeypatch.setattr(sweeps.starts, "MANY", 3)
    monkeypatch.setattr(sweeps.trials.Scoring, "measure", lambda *rest: pytest.fail("the table was measured"))
    result = run_sweep(config, store=tmp_path, resident=resident)
    assert not (result.folder / "table.json").exists()
    space = planner.space({})
    expected = list(dict.fromkeys(tuple(one.tolist()) for one in (alike(space), *shapes(space))))[:5]
    found = [tuple(row.parameters[axis.name] for axis in space.axes) for row in result.rows if row.state == "complete"]
    assert found == expected and all(space.fits(np.array(one)) for one in found)
