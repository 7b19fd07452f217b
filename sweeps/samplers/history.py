"""What a study has tried, as levels: all that samplers of levels remember."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
        levels: of each axis, on the budget.
        value: of the objective, less is better; infinite where measuring was stopped early.
        shared: parameters that all layers share.
        start: whether it was enqueued, not proposed.
    """

    levels: tuple[int, ...]
    value: float
    shared: Mapping[str, Any]
    start: bool


@dataclass(frozen=True, slots=True)
class History:
    """The trials of a study.

    Args:
        finished: complete trials and those stopped early, by number.
        seen: every plan that was proposed, also those under way, refused or failed.
        shared: distributions of the parameters that all layers share, as far as a trial has drawn them.
    """

    finished: tuple[Tried, ...]
    seen: frozenset[Key]
    shared: Mapping[str, BaseDistribution]

    @property
    def ranked(self) -> list[Tried]:
        """The trials that were measured in full, the best first; among equals the earlier."""
        return sorted((one for one in self.finished if math.isfinite(one.value)), key=lambda one: one.value)


def key(levels: Sequence[int], shared: Mapping[str, Any]) -> Key:
    """Return what makes a plan the same as another."""
    return tuple(int(level) for level in levels), repr(sorted(shared.items()))


def history(study: Study, axes: Sequence[Axis]) -> History:
    """Read a study.

    Args:
        study: with one objective; ``levels`` of its trials are those after the projection onto the budget.
        axes: what the levels are of.
    """
    from optuna.study import StudyDirection
    from optuna.trial import TrialState

    names = [axis.name for axis in axes]
    own = set(names)
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    finished: list[Tried] = []
    seen: set[Key] = set()
    distributions: dict[str, BaseDistribution] = {}
    for trial in study.get_trials(deepcopy=False):
        if not own <= trial.params.keys():
            continue
        levels = _levels(trial, names)
        shared = {name: value for name, value in trial.params.items() if name not in own}
        distributions |= {name: one for name, one in trial.distributions.items() if name not in own}
        seen.add(key(levels, shared))
        whole = trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value)
        if whole or (trial.state == TrialState.PRUNED and trial.intermediate_values):
            value = sign * float(trial.value or 0.0) if whole else math.inf
            finished.append(Tried(levels, value, shared, "start" in trial.user_attrs))
    return History(tuple(finished), frozenset(seen), distributions)


def _levels(trial: FrozenTrial, names: Sequence[str]) -> tuple[int, ...]:
    stated = trial.user_attrs.get("levels")
    return tuple(int(level) for level in (stated if stated is not None else (trial.params[name] for name in names)))
