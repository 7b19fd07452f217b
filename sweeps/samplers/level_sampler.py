"""What samplers of levels have in common: they propose an assignment on the budget, from what was tried and a seed alone."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from optuna.distributions import BaseDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler

from sweeps.samplers.history import History, Tried, shared_text
from sweeps.samplers.moves import uniform
from sweeps.space.levels import Levels, LevelSpace

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

SpaceOf = Callable[[Mapping[str, Any]], LevelSpace]
"""Returns the assignments under the parameters that all layers share."""

REDRAWN = 0.25
"""Chance that one of the parameters that all layers share is drawn anew instead of copied from the parent."""


class LevelSampler(BaseSampler):
    """Proposes levels; parameters that all layers share are copied from the parent, now and then one is drawn anew."""

    def __init__(self, space_of: SpaceOf, seed: int, past: History | None = None) -> None:
        """Prepare one draw.

        Args:
            space_of: the assignments under shared parameters.
            seed: of this draw.
            past: what was read of the study before; None: nothing.
        """
        self.space_of, self.rng = space_of, np.random.default_rng(seed)
        self.axes = space_of({}).axes
        self._random = RandomSampler(seed=seed)
        self._past = History(self.axes) if past is None else past

    @abstractmethod
    def proposed(self, past: History) -> tuple[Levels, Tried | None]:
        """Return the next assignment, and the trial whose shared parameters it takes."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the levels, and what trials have drawn for all layers."""
        self._past.read(study)
        levels = {axis.name: IntDistribution(0, len(axis.values) - 1) for axis in self.axes}
        return {**self._past.shared, **levels}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the proposed levels and the parent's shared parameters.

        Args:
            study: whose trials count.
            trial: to be drawn.
            search_space: of ``infer_relative_search_space``.
        """
        past = self._past  # read when the search space was asked for
        if past.ranked:
            levels_A, parent = self.proposed(past)
        else:
            levels_A, parent = uniform(self.space_of({})), None
        shared = {} if parent is None else dict(parent.shared)
        if shared and self.rng.random() < REDRAWN:
            shared.pop(sorted(shared)[int(self.rng.integers(len(shared)))])
        return {**shared, **{axis.name: int(level) for axis, level in zip(self.axes, levels_A, strict=True)}}

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Return a random value of a shared parameter.

        Args:
            study: whose trials count.
            trial: to be drawn.
            param_name: the parameter.
            param_distribution: its values.
        """
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def known(self, past: History, parent: Tried) -> Callable[[Levels], bool]:
        """Return whether levels were tried with the parent's shared parameters."""
        text = shared_text(parent.shared)
        return lambda levels_A: past.knows((tuple(levels_A.tolist()), text))
