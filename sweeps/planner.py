"""From a sampler's parameters to a plan within the budget."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from methods.framework.inventory import Inventory
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from sweeps.budget import Limits
from sweeps.space.dimension import assemble, distributions
from sweeps.space.levels import Levels, LevelSpace
from sweeps.space.menu import Menu, MenuStep
from sweeps.space.step import SearchStep

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


@dataclass(frozen=True, slots=True)
class Drawn:
    """What parameters lead to.

    Args:
        knobs: every setting as planned, after the projection onto the budget; of several steps with their numbers.
        plan: the plan.
        sizes: its cost by name.
        levels: a level for each axis, where layers choose for themselves.
    """

    knobs: Mapping[str, Any]
    plan: Plan
    sizes: Mapping[str, int]
    levels: tuple[int, ...] | None = None


class Planner(ABC):
    """Plans of one recipe for one model."""

    def __init__(
        self,
        steps: Sequence[SearchStep],
        inventory: Inventory,
        stats: Stats,
        limits: Limits,
        probe: Callable[[], Probe] | None = None,
    ) -> None:
        """Prepare to plan.

        Args:
            steps: the recipe.
            inventory: of the source.
            stats: of the source.
            limits: budgets.
            probe: makes the probe, for a first step that runs the model.
        """
        self.steps, self.inventory, self.stats, self.limits, self._probe = tuple(steps), inventory, stats, limits, probe

    @property
    @abstractmethod
    def distributions(self) -> dict[str, BaseDistribution]:
        """What a sampler draws, by name."""

    @abstractmethod
    def drawn(self, parameters: Mapping[str, Any], as_stated: bool = False) -> Drawn:
        """Return the plan of drawn parameters; where the budget projects, the one on the budget.

        Args:
            parameters: by name.
            as_stated: whether parameters that meet the budget stay as they are, also below it.

        Raises:
            RefusedError: a method does not plan with these knobs, or nothing meets the budget.
            ConfigError: the knobs do not go together.
        """


def prefix(steps: Sequence[object], number: int) -> str:
    """Return what comes before the names of a step's parameters, from 0: its number, where there are several."""
    return f"{number + 1}." if len(steps) > 1 else ""


def shared_knobs(steps: Sequence[SearchStep], parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the knobs of each step that all layers share, fixed and drawn."""
    found = []
    for number, step in enumerate(steps):
        start = prefix(steps, number)
        own = {name.removeprefix(start): value for name, value in parameters.items() if name.startswith(start)}
        found.append({**step.fixed, **assemble(step.space, own)})
    return found


def shared_distributions(steps: Sequence[SearchStep]) -> dict[str, BaseDistribution]:
    """Return the distributions of what all layers share."""
    return {
        f"{prefix(steps, number)}{name}": distribution
        for number, step in enumerate(steps)
        for name, distribution in distributions(step.space).items()
    }


def in_depth(values: Mapping[str, Any]) -> dict[str, tuple[Any, ...]]:
    """Return values of single layers, such as ``keep.layer.3``, as one value a knob: those of all layers in their order.

    What is chosen for each matrix is one value a matrix, such as ``keep.gate``.
    """
    found: dict[str, list[Any]] = {}
    for name, value in values.items():
        knob, _, place = name.partition(".layer.")
        _, _, matrix = place.partition(".")
        found.setdefault(f"{knob}.{matrix}" if matrix else knob, []).append(value)
    return {knob: tuple(own) for knob, own in found.items()}


def _text(shared: Mapping[str, Any]) -> str:
    """Return shared parameters as the text of a key."""
    return repr(sorted(shared.items()))


def _of_all(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that all layers share."""
    return {name: value for name, value in parameters.items() if ".layer." not in name}


class LayerPlanner(Planner):
    """Plans whose layers choose for themselves, put together from a menu; drawn are levels, and knobs that all share."""

    @cached_property
    def _menus(self) -> dict[str, Menu]:
        """Menus made so far, one for each setting of the shared knobs."""
        return {}

    @cached_property
    def _spaces(self) -> dict[str, LevelSpace]:
        """Assignments of these menus; a draw asks for one many times."""
        return {}

    @property
    def distributions(self) -> dict[str, BaseDistribution]:
        """Shared knobs, and a level for each axis."""
        from optuna.distributions import IntDistribution

        axes = self.space({}).axes
        return shared_distributions(self.steps) | {a.name: IntDistribution(0, len(a.values) - 1) for a in axes}

    def menu(self, parameters: Mapping[str, Any]) -> Menu:
        """Return the menu of the shared knobs in ``parameters``; those that are missing have the method's defaults."""
        shared = _of_all(parameters)
        key = _text(shared)
        if key not in self._menus:
            knobs = shared_knobs(self.steps, shared) if shared else [dict(step.fixed) for step in self.steps]
            steps = [MenuStep(step.kind, own, step.layered) for step, own in zip(self.steps, knobs, strict=True)]
            self._menus[key] = Menu(steps, self.inventory, self.stats, self._probe)
        return self._menus[key]

    def space(self, parameters: Mapping[str, Any]) -> LevelSpace:
        """Return the assignments of levels, with the limits that draws are brought onto."""
        key = _text(_of_all(parameters))
        if key not in self._spaces:
            self._spaces[key] = self.limits.space(self.menu(parameters))
        return self._spaces[key]

    def drawn(self, parameters: Mapping[str, Any], as_stated: bool = False) -> Drawn:
        """Return the plan of drawn parameters, on the budget where that projects."""
        space = self.space(parameters)
        levels_A = self._levels(space, parameters)
        if self.limits.projecting and not (as_stated and space.fits(levels_A)):
            levels_A = space.projected(levels_A.astype(np.float64))
        return self.at(levels_A, parameters)

    def _levels(self, space: LevelSpace, parameters: Mapping[str, Any]) -> Levels:
        """Return drawn levels; where a shared knob leaves fewer options than the defaults do, at the same part of the way up."""
        drawn_A = np.array([parameters[axis.name] for axis in space.axes], dtype=np.float64)
        usual_A = np.maximum(self.space({}).highest, 1)
        levels: Levels = np.floor(drawn_A * space.highest / usual_A + 0.5).astype(np.int64)
        return levels

    def at(self, levels_A: Levels, parameters: Mapping[str, Any]) -> Drawn:
        """Return the plan of an assignment.

        Args:
            levels_A: a level for each axis.
            parameters: that the shared knobs are taken from.
        """
        menu, space = self.menu(parameters), self.space(parameters)
        return Drawn(
            {**_of_all(parameters), **in_depth(menu.space.values(levels_A))},
            menu.plan(levels_A),
            {
                name: round(space.size(name, levels_A)) for name in space.sizes
            },  # those of the plan, which is not counted anew
            tuple(int(level) for level in levels_A),
        )
