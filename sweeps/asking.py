"""The next trial of a study: drawn in memory, then written in one step.

A trial whose worker is killed while it is drawn was never written, so it is drawn again from the same seed. And a sampler sees
the study as though no worker had ever been lost: a trial that was queued again stands where it stood first. So a study that
was interrupted anywhere draws what it would have drawn in one go.
"""

from __future__ import annotations

import copy
import heapq
from collections.abc import Callable, Container, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState

_SKETCH = -1
"""Number of the trial that is not written yet."""
BEST, LATEST = 64, 192
"""Finished trials that TPE is shown of a longer study with one objective: the best ones, and of the others the last."""


def begin(study: Study, space: Mapping[str, BaseDistribution], draw: Callable[[int], BaseSampler]) -> Trial:
    """Return the next trial, with all its parameters: one that is queued, or one that is drawn now.

    Args:
        study: the study; it gets the sampler.
        space: what is drawn.
        draw: returns the sampler by the number of trials drawn before.
    """
    import optuna

    from sweeps.heartbeat import PROCESS, signature

    sketch: Any = _Sketch(study._storage, study._study_id)
    sampler = draw(_drawn(sketch.trials))
    if isinstance(sampler, optuna.samplers.TPESampler) and len(study.directions) == 1:
        sketch.shown = remembered(sketch.trials, study.direction == optuna.study.StudyDirection.MAXIMIZE)
    seen = optuna.Study(study.study_name, sketch, sampler=sampler)
    number = seen.ask(dict(space))._trial_id
    if number == _SKETCH:
        sketch.trial.user_attrs[PROCESS] = signature()
        number = study._storage.create_new_trial(study._study_id, sketch.trial)
    else:
        study._storage.set_trial_user_attr(number, PROCESS, signature())
    study.sampler = optuna.samplers.RandomSampler()  # a trial asks its sampler when it is made, and this one was asked
    trial = optuna.Trial(study, number)
    study.sampler = seen.sampler
    return trial


def draws(study: Study) -> int:
    """Return the number of trials drawn so far; one that was lost and queued again counts once."""
    return _drawn(undisturbed(study.get_trials(deepcopy=False)))


def _drawn(trials: Sequence[FrozenTrial]) -> int:
    from optuna.trial import TrialState

    return sum(trial.state != TrialState.WAITING for trial in trials)


def undisturbed(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """Return trials in the order and with the numbers that they would have, had none been lost and queued again."""
    lost = {number for trial in trials for number in earlier_attempts(trial)}
    if not lost:
        return list(trials)
    kept = [trial for trial in trials if trial.number not in lost]
    kept.sort(key=lambda trial: (earlier_attempts(trial) or [trial.number])[0])
    return [_numbered(trial, number) for number, trial in enumerate(kept)]


def remembered(trials: Sequence[FrozenTrial], largest: bool) -> list[FrozenTrial]:
    """Return the trials that TPE is shown, in their order: the best ``BEST``, the last ``LATEST`` others, and unfinished ones.

    A draw of TPE takes a time that grows with the trials that it sees. It tells the best of them, at most 25, from all others,
    of which it gives the last ones the most weight; the former are the same as without this.

    Args:
        trials: of the study.
        largest: whether the best value is the largest.
    """
    from optuna.trial import TrialState

    told = [place for place, trial in enumerate(trials) if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    if len(told) <= BEST + LATEST:
        return list(trials)
    sign = -1.0 if largest else 1.0
    complete = (place for place in told if trials[place].state == TrialState.COMPLETE)
    best = set(heapq.nsmallest(BEST, complete, key=lambda place: (sign * (trials[place].value or 0.0), place)))
    last = [place for place in told if place not in best][-LATEST:]
    left_out = set(told) - best - set(last)
    return [trial for place, trial in enumerate(trials) if place not in left_out]


def earlier_attempts(trial: FrozenTrial) -> list[int]:
    """Return the numbers of the trials that were lost and that ``trial`` repeats, in Optuna's own attribute."""
    attempts: list[int] = trial.system_attrs.get("retry_history", [])
    return attempts


def _numbered(trial: FrozenTrial, number: int) -> FrozenTrial:
    if trial.number != number:
        trial = copy.copy(trial)
        trial.number = number
    return trial


class _Sketch:
    """A storage as a sampler sees it that draws a trial: undisturbed, and the new trial stays in memory."""

    def __init__(self, storage: Any, study_id: int) -> None:
        self._storage = storage
        self.trials = undisturbed(storage.get_all_trials(study_id, deepcopy=False))
        self.shown: Sequence[FrozenTrial] = self.trials
        self.trial: FrozenTrial

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        from optuna.trial import FrozenTrial, TrialState

        assert template_trial is None
        self.trial = FrozenTrial(
            number=len(self.trials),
            trial_id=_SKETCH,
            state=TrialState.RUNNING,
            value=None,
            datetime_start=datetime.now(),
            datetime_complete=None,
            params={},
            distributions={},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        return _SKETCH

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        found = [trial for trial in self.shown if states is None or trial.state in states]
        return copy.deepcopy(found) if deepcopy else found

    def get_trial(self, trial_id: int) -> FrozenTrial:
        if trial_id == _SKETCH:
            return self.trial
        number = next(trial.number for trial in self.trials if trial._trial_id == trial_id)
        return _numbered(self._storage.get_trial(trial_id), number)

    def get_trial_system_attrs(self, trial_id: int) -> dict[str, Any]:
        return self.get_trial(trial_id).system_attrs

    def get_trial_user_attrs(self, trial_id: int) -> dict[str, Any]:
        return self.get_trial(trial_id).user_attrs

    def get_trial_params(self, trial_id: int) -> dict[str, Any]:
        return self.get_trial(trial_id).params

    def set_trial_param(
        self, trial_id: int, param_name: str, param_value_internal: float, distribution: BaseDistribution
    ) -> None:
        if trial_id == _SKETCH:
            self.trial.params[param_name] = distribution.to_external_repr(param_value_internal)
            self.trial.distributions[param_name] = distribution
        else:
            self._storage.set_trial_param(trial_id, param_name, param_value_internal, distribution)

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id == _SKETCH:
            self.trial.system_attrs[key] = value
        else:
            self._storage.set_trial_system_attr(trial_id, key, value)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        if trial_id == _SKETCH:
            self.trial.user_attrs[key] = value
        else:
            self._storage.set_trial_user_attr(trial_id, key, value)
