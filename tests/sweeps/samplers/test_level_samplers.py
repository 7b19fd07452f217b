"""Samplers that move between options: they stay on the budget, forget nothing, and find better plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import optuna
import pytest

from sweeps.samplers.chosen import sampler
from sweeps.samplers.evopress import EvoPressSampler
from sweeps.samplers.history import History, history, key
from sweeps.samplers.moves import Load, shapes, switched, uniform
from sweeps.samplers.settings import Sampler
from sweeps.space.levels import Axis, LevelSpace
from tests.support.landscapes import damage, distributions, level_space, levels_of, walked

OWN: dict[str, dict[str, Any]] = {
    "local": {"name": "local"},
    "local, no model": {"name": "local", "candidates": 1},
    "evopress": {"name": "evopress", "offspring": 4},
    "evoesap": {"name": "evoesap", "population": 12},
}
ALL: dict[str, dict[str, Any]] = {
    **OWN,
    "cmaes": {"name": "cmaes", "sigma": 1.0},
    "gp": {"name": "gp", "startup": 4},
    "tpe, multivariate": {"name": "tpe", "multivariate": True, "startup": 4},
    "nsga3": {"name": "nsga3", "population": 4},
}
UNEVEN = (1, 3, 2, 5, 1, 4)


@pytest.mark.parametrize("weights", [None, UNEVEN], ids=["even", "uneven"])
@pytest.mark.parametrize("name", OWN)
def test_plans_meet_the_budget_and_nothing_more_fits(name: str, weights: tuple[int, ...] | None) -> None:
    space = level_space(weights=weights)
    for levels in levels_of(walked(space, OWN[name], 30, damage(space)))[1:]:
        assert space.fits(np.array(levels))
        more = [np.array(levels) + np.eye(len(levels), dtype=int)[axis] for axis in range(len(levels))]
        assert not any((one <= space.highest).all() and space.fits(one) for one in more)


@pytest.mark.parametrize("name", ["local", "local, no model"])
def test_no_plan_is_proposed_twice_while_there_are_others(name: str) -> None:
    space = level_space(axes=4, levels=5)
    found = levels_of(walked(space, OWN[name], 40, damage(space)))
    assert len(set(found)) == len(found)


def test_a_small_space_is_searched_to_its_end_and_beyond() -> None:
    space = level_space(axes=2, levels=3, share=2 / 3)
    found = levels_of(walked(space, OWN["local"], 8, damage(space)))
    assert set(found) == {(0, 2), (1, 1), (2, 0)}


@pytest.mark.parametrize("name", ALL)
def test_what_is_drawn_follows_from_history_and_seed(name: str) -> None:
    space = level_space()
    value = damage(space)
    whole = levels_of(walked(space, ALL[name], 16, value))
    assert levels_of(walked(space, ALL[name], 16, value)) == whole
    assert levels_of(walked(space, {**ALL[name], "seed": 1}, 16, value)) != whole
    stopped = walked(space, ALL[name], 9, value)
    assert levels_of(walked(space, ALL[name], 16, value, stopped)) == whole, "as if it had not been stopped"


@pytest.mark.parametrize("name", OWN)
def test_better_plans_than_the_uniform_one_are_found(name: str) -> None:
    """More than halfway from the uniform plan to the best there is, on every landscape."""
    space = level_space(axes=4, levels=6)
    plans = [np.array(levels) for levels in np.ndindex(6, 6, 6, 6) if space.fits(np.array(levels))]
    for seed in range(3):
        value = damage(space, seed)
        best, even = min(map(value, plans)), value(uniform(space))
        found = walked(space, OWN[name], 50, value).best_value
        assert found < best + (even - best) / 2, seed


def test_the_model_of_trials_saves_measurements() -> None:
    """Over landscapes of many plans, moves that are compared end lower than moves that are not."""
    space = level_space(axes=10, levels=12)
    gains = []
    for seed in range(6):
        value = damage(space, seed)
        plain, compared = (walked(space, OWN[name], 50, value).best_value for name in ("local, no model", "local"))
        gains.append(plain - compared)
    assert np.mean(gains) > 0
    assert sum(gain > 0 for gain in gains) >= 4


@pytest.mark.parametrize("weights", [None, UNEVEN], ids=["even", "uneven"])
def test_a_switch_lowers_and_raises(weights: tuple[int, ...] | None) -> None:
    space, rng = level_space(weights=weights), np.random.default_rng(0)
    for _ in range(200):
        before = space.projected(rng.random(6) * space.highest)
        change = switched(space, before, rng) - before
        assert (change < 0).any() and (change > 0).any()
        if weights is None:
            assert sorted(change.tolist()) == [-1, 0, 0, 0, 0, 1]


def test_shared_parameters_come_from_the_parent_but_for_now_and_then() -> None:
    space = level_space()
    study = walked(space, OWN["local"], 30, damage(space), shared=True)
    values = [trial.params["b"] for trial in study.trials]
    distinct = len(set(values))
    assert 1 < distinct < len(values) / 2


def test_generations_of_evopress_replace_the_parent_only_when_they_are_finished() -> None:
    space = level_space()
    study = walked(space, OWN["evopress"], 3, lambda levels: -float(levels[0]))
    past = history(study, space.axes)
    one = EvoPressSampler(lambda parameters: space, 0, offspring=4)
    assert one.parent(past) == past.starts[0], "two of four children are there"
    study = walked(space, OWN["evopress"], 5, lambda levels: -float(levels[0]), study)
    past = history(study, space.axes)
    assert one.parent(past).value == min(trial.value for trial in (*past.starts, *past.children))


def test_stopped_trials_are_children_that_lost() -> None:
    space = level_space()
    study = walked(space, OWN["evopress"], 2, damage(space))
    trial = study.ask(distributions(space))
    trial.report(0.5, 1)
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    past = history(study, space.axes)
    assert len(past.starts) + len(past.children) == 3 and len(past.ranked) == 2
    refused = study.ask(distributions(space))
    study.tell(refused, state=optuna.trial.TrialState.PRUNED)
    past = history(study, space.axes)
    assert len(past.starts) + len(past.children) == 3, "a refused plan is no child"
    names = [axis.name for axis in space.axes]
    assert past.knows(key([refused.params[name] for name in names], {})), "but it is remembered"


@pytest.mark.parametrize("name", [*OWN, "cmaes"])
def test_a_history_that_is_kept_changes_no_draw(name: str) -> None:
    """Values repeat, so that the order among equals counts."""
    space = level_space()

    def value(levels: Any) -> float:
        return float(levels[0] // 2)

    kept = walked(space, ALL[name], 30, value, past=History(space.axes))
    assert levels_of(kept) == levels_of(walked(space, ALL[name], 30, value))


def test_a_history_that_is_kept_sees_what_finishes_late() -> None:
    space = level_space()
    study = walked(space, OWN["local"], 3, damage(space))
    past = History(space.axes)
    late, lost = study.ask(distributions(space)), study.ask(distributions(space))
    soon = study.ask(distributions(space))
    study.tell(soon, -2.0)
    past.read(study)
    assert past.ranked[0].number == soon.number and len(past.ranked) == 4
    assert past.knows(key([late.params[axis.name] for axis in space.axes], {})), "it is under way"
    study.tell(late, -2.0)
    study.tell(lost, state=optuna.trial.TrialState.FAIL)
    past.read(study)
    past.read(study)
    anew = history(study, space.axes)
    assert [one.number for one in past.ranked] == [late.number, soon.number, *(one.number for one in anew.ranked[2:])]
    assert (past.starts, past.children, past.ranked) == (anew.starts, anew.children, anew.ranked)
    assert past.knows(key([lost.params[axis.name] for axis in space.axes], {})), "what failed is not proposed again"


def test_among_equals_starts_are_the_best_and_then_the_earlier_ones() -> None:
    space = level_space()
    study = walked(space, OWN["local"], 3, lambda levels: 0.0)
    study.enqueue_trial(study.trials[2].params, user_attrs={"start": True})
    walked(space, OWN["local"], 5, lambda levels: 0.0, study)
    past = history(study, space.axes)
    assert [one.number for one in past.best(9, 3)] == [0, 3, 1, 2, 4]
    assert [one.number for one in past.best(3, 1)] == [0, 3, 1], "as many children count as were said"


def test_ten_shapes_differ() -> None:
    space = level_space()
    found = shapes(space)
    assert len(found) == 10 and len({tuple(levels_A.tolist()) for levels_A in found}) >= 9
    for levels_A in found:
        assert space.fits(levels_A)
        higher = [
            levels_A + step_A for step_A in np.eye(6, dtype=np.int64) if (levels_A + step_A <= space.highest).all()
        ]
        assert higher and not any(map(space.fits, higher))
    rising, falling, high, low = (levels_A.astype(int).tolist() for levels_A in found[:4])
    assert rising == sorted(rising) and falling == sorted(falling)[::-1] and rising[0] < rising[-1]
    assert max(high) == max(high[2:4]) > high[0] and min(low) == min(low[2:4]) < low[0]


def test_cmaes_begins_at_the_best_plan() -> None:
    space = level_space(levels=20)
    study = walked(space, {"name": "cmaes", "sigma": 0.5}, 6, lambda levels: 0.0)
    start = np.array(study.trials[0].user_attrs["levels"])
    wished = np.array([[trial.params[axis.name] for axis in space.axes] for trial in study.trials[2:]])
    assert np.abs(wished - start).max() <= 2
    with pytest.raises(ValueError, match="needs a knob that each layer chooses"):
        sampler(Sampler(name="local"), 0)


def test_moves_of_units_with_two_axes_stay_within_every_limit() -> None:
    rng = np.random.default_rng(1)
    axes = tuple(
        Axis(f"{knob}.layer.{unit}", unit, tuple(range(n))) for unit in range(3) for knob, n in (("a", 5), ("b", 3))
    )
    sizes = {name: tuple(rng.integers(1, 90, (5, 3)).cumsum(0).cumsum(1) * 1.0 for _ in range(3)) for name in "xy"}
    limits = {name: 0.5 * sum(part[-1, -1] for part in parts) for name, parts in sizes.items()}
    space = LevelSpace(axes, ("0", "1", "2"), sizes, {"x": 3.0, "y": 0.0}, limits)
    start = space.projected(np.zeros(6))
    for _ in range(50):
        assert space.fits(switched(space, start, rng, 2))
        load, axis = Load(space, start), int(rng.integers(6))
        wanted = start.copy()
        wanted[axis] = int(rng.integers(space.highest[axis] + 1))
        assert load.moved(axis, int(wanted[axis])) == space.fits(wanted)
