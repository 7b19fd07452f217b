"""The next trial: written at once, and drawn as though none had been lost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from sweeps import asking
from sweeps.asking import begin, draws, remembered, undisturbed
from sweeps.journal import RETRIES, give_back, open_study
from tests.support.tiny_sweeps import sweep

SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


class Watching(RandomSampler):
    """Remembers what it was shown, and may be interrupted in the middle of a draw."""

    def __init__(self, seed: int, until: str = "") -> None:
        super().__init__(seed=seed)
        self.until, self.seen, self.number = until, list[tuple[int, TrialState]](), -1

    def sample_independent(self, study: Any, trial: FrozenTrial, param_name: str, *rest: Any) -> Any:
        self.seen = [(other.number, other.state) for other in study.get_trials(deepcopy=False)]
        self.number = trial.number
        if param_name == self.until:
            raise KeyboardInterrupt
        return super().sample_independent(study, trial, param_name, *rest)


@pytest.fixture
def study(home: Path, tmp_path: Path) -> optuna.Study:
    config = sweep(home)
    return open_study(config, config.folder(tmp_path))


def fail(study: optuna.Study, number: int) -> None:
    """Do what is done with a trial whose worker is lost."""
    study._storage.set_trial_state_values(study.trials[number]._trial_id, TrialState.FAIL)
    callback: Callable[..., None] = study._storage.get_heartbeat_stale_trial_callback()  # type: ignore[attr-defined]  # of ours
    callback(study, study.trials[number])


def test_what_is_drawn_by_half_is_not_in_the_study(study: optuna.Study) -> None:
    with pytest.raises(KeyboardInterrupt):
        begin(study, SPACE, lambda drawn: Watching(drawn, until="y"))
    assert study.trials == []
    trial = begin(study, SPACE, Watching)
    assert set(trial.params) == set(SPACE) and trial.params == study.trials[0].params
    assert study.trials[0].state == TrialState.RUNNING and "process" in study.trials[0].user_attrs


def test_a_sampler_does_not_see_that_trials_were_lost(study: optuna.Study) -> None:
    for value in (0.1, 0.2):
        study.enqueue_trial({"x": value, "y": 0.0})
    begin(study, SPACE, Watching)
    fail(study, 0)
    again = begin(study, SPACE, Watching)
    assert (again.params["x"], again.number) == (0.1, 2), "before what was queued behind it"
    study.tell(again, 1.0)
    study.tell(begin(study, SPACE, Watching), 2.0)
    assert draws(study) == 2
    trial = begin(study, SPACE, Watching)
    watching = study.sampler
    assert isinstance(watching, Watching)
    assert (watching.number, trial.number) == (2, 3)
    assert watching.seen == [(0, TrialState.COMPLETE), (1, TrialState.COMPLETE)]
    assert [t.params["x"] for t in undisturbed(study.trials)][:2] == [0.1, 0.2]
    fresh = Watching(2)
    assert trial.params["x"] == fresh._rng.rng.uniform(0, 1), "seeded with what was drawn before"


def test_a_plan_that_always_kills_is_given_up_and_cancelling_does_not_count(study: optuna.Study) -> None:
    first = begin(study, SPACE, Watching)
    for _ in range(RETRIES + 2):
        give_back(study, study.trials[-1])
        assert begin(study, SPACE, Watching).params == first.params
    for _ in range(RETRIES):
        fail(study, len(study.trials) - 1)
        assert begin(study, SPACE, Watching).params == first.params
    fail(study, len(study.trials) - 1)
    assert {trial.state for trial in study.trials} == {TrialState.FAIL} and draws(study) == 1
    give_back(study, study.trials[-1])
    assert {trial.state for trial in study.trials} == {TrialState.FAIL}, "what has ended is not given back"


def test_what_a_queued_trial_leaves_open_is_drawn_again(study: optuna.Study) -> None:
    study.enqueue_trial({"x": 0.5})
    first = begin(study, SPACE, Watching)
    fail(study, 0)
    assert study.trials[1].params == {}
    assert begin(study, SPACE, Watching).params == first.params == {"x": 0.5, "y": first.params["y"]}


VALUES = (3.0, 1.0, 4.0, None, 5.0, 9.0, 2.0, 6.0, 8.0, 7.0)
"""Of ten trials; the fourth was ended early."""


@pytest.mark.parametrize(("largest", "kept"), [(False, [0, 1, 6, 7, 8, 9, 10]), (True, [4, 5, 6, 7, 8, 9, 10])])
def test_of_a_long_study_tpe_is_shown_the_best_and_the_last(
    study: optuna.Study, monkeypatch: pytest.MonkeyPatch, largest: bool, kept: list[int]
) -> None:
    monkeypatch.setattr(asking, "BEST", 3)
    monkeypatch.setattr(asking, "LATEST", 3)
    for number, value in enumerate(VALUES):
        state = TrialState.PRUNED if value is None else TrialState.COMPLETE
        at = {"x": number / 10, "y": 0.5}
        study.add_trial(optuna.trial.create_trial(state=state, params=at, distributions=dict(SPACE), value=value))
    study.enqueue_trial({"x": 0.5, "y": 0.5})
    assert [trial.number for trial in remembered(study.trials, largest)] == kept
    monkeypatch.setattr(asking, "LATEST", 7)
    assert remembered(study.trials, largest) == study.trials, "a study that is no longer is shown whole"


class WatchingTpe(TPESampler):
    """Remembers how many trials it was shown."""

    def infer_relative_search_space(self, study: Any, trial: FrozenTrial) -> Any:
        self.shown = len(study.get_trials(deepcopy=False))
        return super().infer_relative_search_space(study, trial)


def test_other_samplers_see_the_whole_study(study: optuna.Study, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "BEST", 1)
    monkeypatch.setattr(asking, "LATEST", 2)
    for number in range(5):
        study.add_trial(optuna.trial.create_trial(params={"x": 0.1, "y": 0.2}, distributions=dict(SPACE), value=number))
    first = begin(study, SPACE, lambda drawn: WatchingTpe(n_startup_trials=1, seed=drawn))
    assert isinstance(study.sampler, WatchingTpe) and study.sampler.shown == 3 and first.number == 5
    begin(study, SPACE, Watching)
    assert isinstance(study.sampler, Watching) and len(study.sampler.seen) == 6
