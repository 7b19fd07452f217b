"""A race on a tiny model: tokens are counted, results are kept, and tables tell who is ahead."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from methods.framework.errors import ConfigError
from sweeps.opening import open_resident
from sweeps.planner import LayerPlanner
from sweeps.racing import __main__ as running
from sweeps.racing import page, rows
from sweeps.racing.contenders import CONTENDERS, run, solutions
from sweeps.racing.race_config import Race, load_race
from sweeps.racing.standings import grouped, standings
from sweeps.racing.track import Spent, Track
from sweeps.resident import Resident
from sweeps.trials import planner_for
from tests.support.tiny import tiny_tokens

EVALUATIONS = 16


def race(home: Path, **changes: Any) -> Race:
    base: dict[str, Any] = {
        "name": "tiny",
        "models": [str(home / "model")],
        "recipe": [{"method": "criterion", "space": {"keep": {"by": "layer"}}}],
        "budget": {"of": "experts", "keep": 0.5},
        "calibration": {"corpus": str(home / "calibration.json"), "sequences": 4, "length": 16},
        "corpus": str(home / "held_out.json"),
        "judge": str(home / "judge.json"),
        "length": 16,
        "windows": 8,
        "held_out": 8,
        "evaluations": EVALUATIONS,
        "anchors": 2,
        "seeds": [0, 1],
        "contenders": ["uniform", "table_model", "tpe", "rco"],
    }
    return Race.model_validate({**base, **changes})


@pytest.fixture(scope="module")
def opened(home: Path) -> tuple[LayerPlanner, Resident]:
    (home / "judge.json").write_text(json.dumps(tiny_tokens(8, 16, seed=2).tolist()))
    config = race(home).sweep(str(home / "model"))
    resident = open_resident(config, home / "race", race(home).held_out_windows)
    planner = planner_for(config, resident)
    assert isinstance(planner, LayerPlanner)
    return planner, resident


def track(home: Path, opened: tuple[LayerPlanner, Resident], tmp_path: Path) -> Track:
    planner, resident = opened
    return Track(race(home), planner, resident, 0, tmp_path)


@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_stays_within_its_tokens(
    name: str, home: Path, opened: tuple[LayerPlanner, Resident], tmp_path: Path
) -> None:
    course = track(home, opened, tmp_path)
    run(name, course)
    assert course.best is not None and course.space.fits(np.array(course.best[1]))
    assert course.evaluations * course.cost <= course.tokens <= course.budget
    assert course.curve[-1][1] == course.best[0] == min(value for _, value in course.curve)
    staged = name in ("evopress_staged", "rco")
    assert (course.tokens == course.evaluations * course.cost) is not staged
    before = course.best, course.tokens
    run(name, course)
    assert (course.best, course.tokens) == before, "the same again, though answers are in the store by now"


def test_a_plan_costs_once_and_the_end_is_the_end(
    home: Path, opened: tuple[LayerPlanner, Resident], tmp_path: Path
) -> None:
    course = track(home, opened, tmp_path)
    levels = np.zeros_like(course.space.highest)
    assert course.value(levels) == course.value(levels) and course.tokens == course.cost == 8 * 16
    course.spend(course.budget - course.tokens)
    with pytest.raises(Spent):
        course.value(levels + 1)
    assert course.value(levels) >= 0


def test_plans_above_the_budget_do_not_win(home: Path, opened: tuple[LayerPlanner, Resident], tmp_path: Path) -> None:
    course = track(home, opened, tmp_path)
    assert course.value(course.space.highest, off_budget=True) == pytest.approx(0.0, abs=1e-9)
    assert course.best is None
    found = solutions(course, 3)
    assert all(course.space.fits(levels) for levels in found)
    assert len({tuple(levels.tolist()) for levels in found}) == 3
    # The whole model, and each layer at its smallest.
    assert course.evaluations == 1 + len(course.space.units)


def test_results_are_kept_gathered_and_shown(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "tiny.yaml"
    path.write_text(json.dumps(race(home).model_dump(mode="json")))
    assert running.main([str(path), "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out.count("held out") == 8
    assert running.main([str(path), "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "", "what is finished is not run again"
    table = tmp_path / "race.csv"
    assert rows.main([str(path), "--store", str(tmp_path), "--csv", str(table)]) == 0
    found = rows.read_rows(table)
    assert len(found) == 8 and all(len(row.windows_N) == 8 for row in found)
    (cell,) = [one for one in rows.finished(load_race(path), tmp_path) if (one["seed"], one["contender"]) == (1, "tpe")]
    (row,) = [one for one in found if (one.seed, one.contender) == (1, "tpe")]
    assert row.held_out == pytest.approx(cell["held_out"], rel=1e-3) and row.search == pytest.approx(
        cell["search"], rel=1e-4
    )
    text = tmp_path / "search.md"
    text.write_text(f"# Search\n{page.BEGIN}old{page.END}\nend\n")
    assert page.main([str(table), "--page", str(text), "--figures", str(tmp_path)]) == 0
    shown = text.read_text()
    assert shown.startswith("# Search\n") and shown.endswith("\nend\n") and "old" not in shown
    assert "| table + DP, then local with a model |" in shown
    assert (tmp_path / "convergence.png").is_file() and (tmp_path / "convergence.svg").is_file()
    assert page.reference({"tpe", "table_model", "shapes_model"}) == "shapes_model" and "against the default" in shown
    text.write_text("# no marks\n")
    assert page.main([str(table), "--page", str(text), "--figures", str(tmp_path)]) == 1


def test_races_of_one_model_share_rows_of_the_figure() -> None:
    wide = [("a", "x"), ("a", "y")]
    alone = [(race, "z") for race in "bcd"]
    assert page.panels_of(wide + alone) == {
        ("a", "x"): (0, 0),
        ("a", "y"): (0, 1),
        ("b", "z"): (1, 0),
        ("c", "z"): (1, 1),
        ("d", "z"): (2, 0),
    }
    assert page.panels_of([*alone[:1], *wide]) == {("b", "z"): (0, 0), ("a", "x"): (1, 0), ("a", "y"): (1, 1)}
    assert page.panels_of(alone) == {(race, "z"): (row, 0) for row, race in enumerate("bcd")}


def test_files_are_read_strictly(tmp_path: Path) -> None:
    path = tmp_path / "race.yaml"
    for text in ("- a", "{", "name: x\nunknown: 1"):
        path.write_text(text)
        with pytest.raises(ConfigError):
            load_race(path)


def test_shipped_races_are_read() -> None:
    folder = Path(running.__file__).parent.parent / "races"
    found = [load_race(path) for path in sorted(folder.glob("*.yaml"))]
    pocket, large = found[:3], found[3:]
    assert [one.name for one in pocket] == ["experts", "joint", "ranks"]
    assert [one.name.removeprefix("real-language-") for one in large] == ["experts", "joint", "ranks", "shapes"]
    for one in found:
        assert len(one.seeds) >= 5
        assert {"uniform", "evoesap", "evopress", "rco"} <= set(one.contenders)
        assert set(page.REFERENCES) & set(one.contenders)
    for one in pocket:
        assert all(Path(model).is_dir() for model in one.models) and len(one.models) == 3
        assert {"tpe", "cmaes", "nsga2"} <= set(one.contenders)


def made_up(contender: str, factor: float, noise: float, seed: int) -> rows.Row:
    rng = np.random.default_rng(seed)
    own = np.random.default_rng(ord(contender) * 100 + seed)
    windows = rng.lognormal(0, 0.5, 64) * factor * own.lognormal(0, noise, 64)
    return rows.Row("r", "m", seed, contender, factor, windows, 100.0, 10, 1.0, ((10.0, factor),))


def test_standings_pair_seeds_and_windows() -> None:
    found = [
        made_up(name, factor, noise, seed)
        for name, factor, noise in (("a", 1.0, 0.0), ("b", 1.1, 0.0), ("c", 1.0, 0.3), ("d", 0.8, 0.0))
        for seed in range(5)
    ]
    by = {one.contender: one for one in standings(grouped(found)["r", "m"], "a")}
    assert by["a"].more == 0.0 and not by["a"].worse and not by["a"].better
    assert by["b"].more == pytest.approx(0.1) and by["b"].worse, "windows differ widely, but alike"
    assert by["d"].better and by["d"].more == pytest.approx(-0.2)
    assert by["c"].low < by["c"].more < by["c"].high and by["c"].high - by["c"].low > 0.02
    assert standings(grouped(found)["r", "m"], "a")[0].contender == "d"
