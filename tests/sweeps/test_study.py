"""A sweep as a whole: resumed, the same whether stopped or not, and not begun again when it is complete."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import sweeps.opening
from sweeps.outcome import SweepResult
from sweeps.resident import Resident
from sweeps.study import run_sweep
from tests.support.tiny_sweeps import drawn, sweep


@pytest.mark.parametrize("name", ["tpe", "nsga2", "cmaes", "random"])
def test_stopped_and_continued_equals_in_one_go(home: Path, resident: Resident, tmp_path: Path, name: str) -> None:
    settings = {"name": name, "startup": 3, "population": 3}
    trials = 7  # beyond the random start, and beyond two generations
    whole = run_sweep(sweep(home, sampler=settings, trials=trials), store=tmp_path / "a", resident=resident)
    for enough in (2, 5, trials):
        parts = run_sweep(sweep(home, sampler=settings, trials=enough), store=tmp_path / "b", resident=resident)
        assert parts.count("complete") == enough
    assert drawn(parts.rows) == drawn(whole.rows)
    assert len({json.dumps(row.parameters) for row in whole.rows}) > 4


def test_the_order_of_the_file_does_not_matter(home: Path, resident: Resident, tmp_path: Path) -> None:
    spaces = [
        dict.fromkeys(order, "auto") for order in (["b", "alpha", "beta", "keep"], ["keep", "beta", "alpha", "b"])
    ]
    results = [
        run_sweep(sweep(home, space=space, trials=5), store=tmp_path / str(index), resident=resident)
        for index, space in enumerate(spaces)
    ]
    assert drawn(results[0].rows) == drawn(results[1].rows)


def test_a_complete_sweep_does_not_load_the_model(
    home: Path, whole: SweepResult, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {path: path.read_bytes() for path in whole.folder.rglob("*.csv")}
    monkeypatch.setattr(sweeps.opening, "open_resident", lambda *_: pytest.fail("loaded"))
    assert drawn(run_sweep(sweep(home), store=home / "whole").rows) == drawn(whole.rows)
    assert files and all(path.read_bytes() == content for path, content in files.items())
