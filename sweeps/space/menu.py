"""The menu: plan and exact sizes of every option of every layer, from few plannings.

An option of a layer is what the recipe decides there when every layer has that option. So plans of all assignments are put
together from one planning for each combination of values, and a trial plans nothing.

Letters: L decoder layers of the source, Q quantities of ``methods.framework.cost.Cost``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from itertools import product
from typing import Any, Literal, TypeAlias

import numpy as np

from methods.framework.cost import Cost, cost, layer_costs
from methods.framework.errors import ConfigError, PlanError, RefusedError
from methods.framework.inventory import EXPERT_ROLES, Inventory
from methods.framework.knob_space import Share, space_of
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from methods.framework.transfer import result
from sweeps.space.composed import composed
from sweeps.space.dimension import Layers
from sweeps.space.levels import Axis, Levels, LevelSpace, Reals
from sweeps.space.options import options
from sweeps.space.statements import Drop

MOST_PLANNINGS = 4096
"""Combinations of values that a menu plans at most."""

QUANTITIES = tuple(field.name for field in fields(Cost))
ROLES = tuple(role.removeprefix("expert.") for role in EXPERT_ROLES)
"""Matrices of an expert: gate, up, down."""

Values: TypeAlias = tuple[Any, ...]
"""A value for each dial, in their order; None leaves the dial's step out."""


@dataclass(frozen=True)
class MenuStep:
    """A step of the recipe, with everything given but what each layer chooses.

    Args:
        kind: the method.
        knobs: settings that all layers share.
        layered: knobs with a value for each layer.
    """

    kind: type[Method]
    knobs: Mapping[str, Any]
    layered: Mapping[str, Layers]


@dataclass(frozen=True, slots=True)
class Dial:
    """A knob that each layer, or each matrix of a layer, chooses for itself; options from small results to large ones."""

    step: int
    knob: str
    by: Literal["layer", "matrix"]
    options: Values


class Menu:
    """Plans and sizes of the options of a recipe for one model."""

    def __init__(
        self, steps: Sequence[MenuStep], inventory: Inventory, stats: Stats, probe: Callable[[], Probe] | None = None
    ) -> None:
        """Find the options and bring them in the order of their sizes.

        Args:
            steps: the recipe.
            inventory: of the source.
            stats: of the source.
            probe: makes the probe, for a first step that runs the model.

        Raises:
            ConfigError: more combinations of values than can be planned.
            RefusedError: the method refuses every option of a knob; with its reason.
        """
        self.steps, self.inventory, self.stats, self._probe = tuple(steps), inventory, stats, probe
        self._plans: dict[Values, Plan | str] = {}
        self._vectors: dict[tuple[Values, int | None], Reals] = {}
        self._layers: dict[tuple[int, Values], LayerPlan] = {}
        self._outside = _vector(cost(Plan.identity(inventory), inventory)) - self._of_source.sum(axis=0)
        found = [
            Dial(number, knob, dimension.by, options(step.kind, knob, dimension, inventory))
            for number, step in enumerate(self.steps)
            for knob, dimension in step.layered.items()
        ]
        most = int(
            np.prod([len(dial.options) ** (3 if dial.by == "matrix" and len(found) > 1 else 1) for dial in found])
        )
        if most > MOST_PLANNINGS:
            raise ConfigError(
                f"each layer would have {most} combinations of options, more than {MOST_PLANNINGS}; give fewer `levels` or "
                "`choices`"
            )
        self.dials = tuple(found)
        for place, dial in enumerate(found):
            self.dials = (*self.dials[:place], self._ordered(dial), *self.dials[place + 1 :])

    @cached_property
    def space(self) -> LevelSpace:
        """All assignments with their sizes, without limits."""
        by_matrix = self._by_matrix
        axes: list[Axis] = []
        units: list[str] = []
        sizes: dict[str, list[Reals]] = {name: [] for name in QUANTITIES}
        shifts = np.zeros(len(QUANTITIES))
        for layer in self.layers:
            for roles in ((0,), (1,), (2,)) if by_matrix else ((0, 1, 2),):
                own = self._axes(layer, roles, len(units))
                grid = self._grid(layer, roles, [len(axis.values) for axis in own])
                if 0 not in roles:  # what a factored matrix saves, counted from the smallest
                    least = grid.reshape(-1, len(QUANTITIES)).min(axis=0)
                    grid, shifts = grid - least, shifts + least
                axes += own
                units.append(f"layer {layer}, {ROLES[roles[0]]}" if by_matrix else f"layer {layer}")
                for place, name in enumerate(QUANTITIES):
                    sizes[name].append(grid[..., place])
        fixed = [layer for layer in range(len(self.inventory.layers)) if layer not in self.layers]
        beside = self._outside + self._vector(self._whole)[fixed].sum(axis=0) + shifts
        rest = dict(zip(QUANTITIES, (float(value) for value in beside), strict=True))
        return LevelSpace(tuple(axes), tuple(units), {n: tuple(s) for n, s in sizes.items()}, rest, {})

    @cached_property
    def layers(self) -> tuple[int, ...]:
        """The layers that choose: those with experts that the steps without options leave."""
        without = self._plan(self._whole)
        kept = (
            [True] * len(self.inventory.layers)
            if isinstance(without, str)
            else [p.drop == "none" for p in without.layers]
        )
        return tuple(layer for layer in self.inventory.moe_layers if kept[layer])

    def plan(self, levels_A: Levels) -> Plan:
        """Return the plan of an assignment.

        Args:
            levels_A: a level for each axis of ``space``.

        Raises:
            RefusedError: a layer has no such option; with the method's reason.
        """
        space = self.space
        by_layer: dict[int, list[Any]] = {layer: [] for layer in self.layers}
        owner = self._owner
        for axis, level in zip(space.axes, levels_A, strict=True):
            by_layer[owner[axis.unit]].append(axis.values[level])
        plans = list(self.unchosen)
        for layer, values in by_layer.items():
            plans[layer] = self.layer_plan(layer, self._gathered(values))
        return Plan.of(self.inventory, plans)

    @property
    def unchosen(self) -> tuple[LayerPlan, ...]:
        """What becomes of each layer of the source that does not choose; of the others, that nothing does."""
        without = self._plan(self._whole)
        plans = (Plan.identity(self.inventory) if isinstance(without, str) else without).layers
        return tuple(LayerPlan() if layer in self.layers else plan for layer, plan in enumerate(plans))

    def unit_plan(self, unit: int, levels: Sequence[int]) -> tuple[int, LayerPlan]:
        """Return the layer of a unit, and what becomes of it; of a unit that is one matrix, with the factors of that alone.

        Args:
            unit: its number.
            levels: a level for each of its axes.

        Raises:
            RefusedError: there is no such option; with the method's reason.
        """
        own = [axis for axis in self.space.axes if axis.unit == unit]
        layer = self._owner[unit]
        values = [axis.values[level] for axis, level in zip(own, levels, strict=True)]
        if self._by_matrix:
            return layer, _column(self._layer_of(layer, tuple(values)), unit % len(ROLES))
        return layer, self.layer_plan(layer, self._gathered(values))

    @property
    def _matrix_dial(self) -> int | None:
        """Place of the dial that each matrix chooses for itself, if there is one."""
        return next((place for place, dial in enumerate(self.dials) if dial.by == "matrix"), None)

    @property
    def _by_matrix(self) -> bool:
        """Whether each matrix is a unit of its own."""
        return len(self.dials) == 1 and self.dials[0].by == "matrix"

    @property
    def _owner(self) -> list[int]:
        """The layer of each unit."""
        return [layer for layer in self.layers for _ in (ROLES if self._by_matrix else ("",))]

    def layer_plan(self, layer: int, values: Values) -> LayerPlan:
        """Return what becomes of one layer.

        Args:
            layer: its index.
            values: of each dial; of one by matrix the three of gate, up and down.

        Raises:
            RefusedError: there is no such option; with the method's reason.
        """
        key = (layer, values)
        if key not in self._layers:
            place = self._matrix_dial
            if place is None:
                self._layers[key] = self._layer_of(layer, values)
            else:
                thirds = [(*values[:place], one, *values[place + 1 :]) for one in values[place]]
                self._layers[key] = _columns([self._layer_of(layer, third) for third in thirds])
        return self._layers[key]

    def _layer_of(self, layer: int, values: Values) -> LayerPlan:
        if (gone := self._gone(values)) != "none":
            return LayerPlan(drop=gone)
        plan = self._plan(values)
        if isinstance(plan, str):
            raise RefusedError(plan)
        return plan.layers[layer]

    @property
    def _whole(self) -> Values:
        return (None,) * len(self.dials)

    @cached_property
    def _of_source(self) -> Reals:
        return np.array([_vector(one) for one in layer_costs(self.inventory)])

    def _axes(self, layer: int, roles: Sequence[int], unit: int) -> list[Axis]:
        """Return the axes of a unit, those of the matrices of a dial beside each other."""
        found = []
        for dial in self.dials:
            name = f"{dial.step + 1}.{dial.knob}" if len(self.steps) > 1 else dial.knob
            ends = [f".{ROLES[role]}" for role in roles] if dial.by == "matrix" else [""]
            found += [Axis(f"{name}.layer.{layer}{end}", unit, dial.options) for end in ends]
        return found

    def _gathered(self, values: Sequence[Any]) -> Values:
        """Return values of axes as values of dials: three successive ones of a dial by matrix are one."""
        left = iter(values)
        return tuple((next(left), next(left), next(left)) if d.by == "matrix" else next(left) for d in self.dials)

    def _grid(self, layer: int, roles: Sequence[int], shape: Sequence[int]) -> Reals:
        """Return the sizes of all combinations of a unit's options, [..., Q]; infinite where there is no plan."""
        grid = np.zeros((*shape, len(QUANTITIES)))
        for levels in product(*map(range, shape)):
            left = iter(levels)
            picked: list[Any] = []
            for dial in self.dials:
                own = [dial.options[next(left)] for _ in (roles if dial.by == "matrix" else (0,))]
                picked.append(tuple(own) if dial.by == "matrix" else own[0])
            grid[levels] = self._size(layer, tuple(picked), roles)
        return grid

    def _size(self, layer: int, values: Values, roles: Sequence[int]) -> Reals:
        """Return the sizes of a layer at one combination, or of its part that ``roles`` decide, [Q].

        Matrices of a layer add up, so the part of one is how the layer changes when it alone is factored; the first of them
        counts what they have in common.
        """
        place = self._matrix_dial
        if place is None:
            return np.asarray(self._vector(values)[layer])
        base = self._vector((*values[:place], None, *values[place + 1 :]))[layer]
        total: Reals = base if 0 in roles else np.zeros_like(base)
        for role, value in zip(roles, values[place], strict=True):
            alone = self._vector((*values[:place], value, *values[place + 1 :]), role)[layer]
            total = total + (alone - base if np.isfinite(base).all() else alone)
        return total

    def _gone(self, values: Values) -> Literal["none", "moe", "block"]:
        """Return what of a layer goes by these values, whatever else they say of it."""
        dropped = [
            v for d, v in zip(self.dials, values, strict=True) if self.steps[d.step].kind is Drop and v is not None
        ]
        return dropped[0] if dropped else "none"

    def _vector(self, values: Values, role: int | None = None) -> Reals:
        """Return the sizes of every layer when all have these values, [L, Q]; with ``role`` only that matrix is factored."""
        key = (values, role)
        if key not in self._vectors:
            gone = self._gone(values)
            plan = self._plan(values) if gone == "none" else self._without(gone)
            if gone == "block":
                found = np.zeros((len(self.inventory.layers), len(QUANTITIES)))
            elif isinstance(plan, str):
                found = np.full((len(self.inventory.layers), len(QUANTITIES)), np.inf)
            else:
                layers = plan.layers if role is None else [_column(one, role) for one in plan.layers]
                left = iter(layer_costs(result(Plan.of(self.inventory, layers), self.inventory)))
                nothing = np.zeros(len(QUANTITIES))
                found = np.array([nothing if one.drop == "block" else _vector(next(left)) for one in layers])
            self._vectors[key] = found
        return self._vectors[key]

    def _plan(self, values: Values) -> Plan | str:
        """Return the plan with these values in all layers, or why there is none."""
        if values not in self._plans:
            try:
                self._plans[values] = self._planned(values)
            except (RefusedError, PlanError, ConfigError) as error:
                self._plans[values] = str(error)
        return self._plans[values]

    def _without(self, gone: Literal["moe", "block"]) -> Plan | str:
        """Return the plan without all MoE sub-layers; there is none without all blocks, whose size is nothing."""
        if gone == "block":
            return ""
        return Plan.of(self.inventory, Drop(drop=gone).decide(self.inventory, self.stats))

    def _planned(self, values: Values) -> Plan:
        methods: list[tuple[int, Method]] = []
        for number, step in enumerate(self.steps):
            own = {d.knob: v for d, v in zip(self.dials, values, strict=True) if d.step == number}
            if None in own.values() or step.kind is Drop:
                continue
            knobs = {name: _spread(step.kind, name, value) for name, value in own.items()}
            methods.append((number, step.kind.configured({**step.knobs, **knobs})))
        return composed(methods, self.inventory, self.stats, self._probe)

    def _ordered(self, dial: Dial) -> Dial:
        """Return a dial with the options that the method accepts, from small results to large ones."""
        sized: list[tuple[tuple[float, ...], Any]] = []
        reason = ""
        for value in dial.options:
            # Other knobs of the same step need some value; other steps are left out.
            others = [other.options[-1] if other.step == dial.step else None for other in self.dials]
            values = tuple(value if d is dial else other for d, other in zip(self.dials, others, strict=True))
            plan = self._plan(values) if self._gone(values) == "none" else None
            if isinstance(plan, str):
                reason = plan
            else:
                total = self._vector(values).sum(axis=0)
                sized.append((tuple(total[QUANTITIES.index(name)] for name in ("bytes", "flops")), value))
        if not sized:
            raise RefusedError(f"no option of {dial.knob} is possible: {reason}")
        order = sorted(range(len(sized)), key=lambda index: sized[index][0])
        return Dial(dial.step, dial.knob, dial.by, tuple(sized[index][1] for index in order))


def _spread(kind: type[Method], knob: str, value: Any) -> Any:
    """Return the value of a knob for all layers: a share as one knot, so that each layer has a budget of its own."""
    own = space_of(kind).get(knob)
    takes_knots = knob == "keep" and (bool(kind.shares) or (isinstance(own, Share) and own.depth))
    return (value,) if takes_knots else value


def _vector(one: Cost) -> Reals:
    return np.array(astuple(one), dtype=np.float64)


def _column(plan: LayerPlan, role: int) -> LayerPlan:
    """Return ``plan`` with the factors of one matrix, the other two whole."""
    if plan.rank is None:
        return plan
    ranks = [tuple(rank if index == role else 0 for index, rank in enumerate(three)) for three in plan.rank.ranks]
    factored = any(any(three) for three in ranks)
    return plan.model_copy(update={"rank": plan.rank.model_copy(update={"ranks": tuple(ranks)}) if factored else None})


def _columns(plans: Sequence[LayerPlan]) -> LayerPlan:
    """Return one plan with the factors of gate from the first of three plans, of up from the second, of down from the third."""
    first = next((plan for plan in plans if plan.rank is not None), plans[0])
    if first.rank is None:
        return first
    thirds = [
        [0] * len(first.rank.ranks) if plan.rank is None else [three[role] for three in plan.rank.ranks]
        for role, plan in enumerate(plans)
    ]
    ranks = tuple(zip(*thirds, strict=True))
    factored = any(any(three) for three in ranks)
    return first.model_copy(update={"rank": first.rank.model_copy(update={"ranks": ranks}) if factored else None})
