"""What a study has tried, as levels: all that samplers of levels remember."""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any, TypeAlias

from sweeps.space.levels import Axis

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

Key: TypeAlias = tuple[tuple[int, ...], str]
"""Levels, and what all layers share, as text."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A finished trial.

    Args:
        number: in the study.
        levels: of each axis, on the budget.
        value: of the objective, less is better; infinite where measuring was stopped early.
        shared: parameters that all layers share.
        start: whether it was enqueued, not proposed.
    """

    number: int
    levels: tuple[int, ...]
    value: float
    shared: Mapping[str, Any]
    start: bool


class History:
    """The trials of one study; each reading looks only at those that are new or were not finished at the last one.

    Attributes:
        starts: finished trials that were enqueued, by number. Finished are complete ones and those stopped early.
        children: finished trials that were proposed, by number.
        ranked: trials that were measured in full, the best first; among equals the earlier.
        shared: distributions of the parameters that all layers share, as far as a trial has drawn them.
    """

    def __init__(self, axes: Sequence[Axis]) -> None:
        """Begin with nothing; ``axes`` are what the levels are of."""
        self.starts: list[Tried] = []
        self.children: list[Tried] = []
        self.ranked: list[Tried] = []
        self.shared: dict[str, BaseDistribution] = {}
        self._names = [axis.name for axis in axes]
        self._own = set(self._names)
        self._seen: set[Key] = set()
        self._under_way: set[Key] = set()
        self._unsettled: list[int] = []
        self._read = 0

    def read(self, study: Study) -> None:
        """Look at the trials of the study, which has one objective and is the same at each reading.

        ``levels`` of its trials are those after the projection onto the budget. A trial that is complete or pruned stays as it
        is; one that failed may be tried again in its place.
        """
        from optuna.study import StudyDirection
        from optuna.trial import TrialState

        sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
        trials = study.get_trials(deepcopy=False)
        places, self._unsettled, self._under_way = [*self._unsettled, *range(self._read, len(trials))], [], set()
        self._read = len(trials)
        for place in places:
            trial = trials[place]
            settled = trial.state in (TrialState.COMPLETE, TrialState.PRUNED)
            if not settled:
                self._unsettled.append(place)
            if self._own <= trial.params.keys():
                self._take(trial, sign, self._seen if settled else self._under_way)

    def knows(self, plan: Key) -> bool:
        """Return whether a plan was proposed, be it under way, refused or failed."""
        return plan in self._seen or plan in self._under_way

    def best(self, count: int, born: int) -> list[Tried]:
        """Return the best trials, starts before children of the same value, and then the earlier ones.

        Args:
            count: how many, at most.
            born: children that count, the first ones; all starts do.
        """
        last = self.children[born - 1].number if born else -1

        def counts(one: Tried) -> bool:
            return one.start or one.number <= last

        found: list[Tried] = []
        for one in self.ranked:
            if counts(one):
                if len(found) >= count and one.value > found[-1].value:
                    break  # equal ones are looked at to the last
                found.append(one)
        found.sort(key=lambda one: (one.value, not one.start, one.number))
        if len(found) < count:
            first = takewhile(counts, self.children)
            found += [one for one in (*self.starts, *first) if not math.isfinite(one.value)]
        return found[:count]

    def _take(self, trial: FrozenTrial, sign: float, seen: set[Key]) -> None:
        from optuna.trial import TrialState

        levels = _levels(trial, self._names)
        shared = {name: value for name, value in trial.params.items() if name not in self._own}
        self.shared |= {name: one for name, one in trial.distributions.items() if name not in self._own}
        seen.add(key(levels, shared))
        whole = trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value)
        if whole or (trial.state == TrialState.PRUNED and trial.intermediate_values):
            value = sign * float(trial.value or 0.0) if whole else math.inf
            one = Tried(trial.number, levels, value, shared, "start" in trial.user_attrs)
            insort(self.starts if one.start else self.children, one, key=lambda other: other.number)
            if whole:
                insort(self.ranked, one, key=lambda other: (other.value, other.number))


def key(levels: Sequence[int], shared: Mapping[str, Any]) -> Key:
    """Return what makes a plan the same as another."""
    return tuple(int(level) for level in levels), shared_text(shared)


def shared_text(shared: Mapping[str, Any]) -> str:
    """Return what all layers share, as the text of a key."""
    return repr(sorted(shared.items()))


def history(study: Study, axes: Sequence[Axis]) -> History:
    """Return what a study has tried so far.

    Args:
        study: with one objective.
        axes: what the levels are of.
    """
    found = History(axes)
    found.read(study)
    return found


def _levels(trial: FrozenTrial, names: Sequence[str]) -> tuple[int, ...]:
    stated = trial.user_attrs.get("levels")
    return tuple(int(level) for level in (stated if stated is not None else (trial.params[name] for name in names)))
