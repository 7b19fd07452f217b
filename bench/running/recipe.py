"""Recipes: several methods one after the other, composed into one plan that is applied once, from the source.

A later step reads the statistics of the source, sliced to what the earlier steps left, or (``recalibrate``) statistics measured
anew on the intermediate checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from bench.applying.moments import TOKENS
from bench.checkpoint.checkpoint import Checkpoint
from bench.running.calibrator import Calibrator
from bench.running.stages import write_checkpoint
from bench.settings.method_settings import RecipeConfig
from bench.store.store import Store
from methods.framework.compose import compose
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Array, Stats
from methods.framework.transfer import result


@dataclass(frozen=True)
class Step:
    """A configured method of a recipe."""

    method: Method
    recalibrate: bool


@dataclass(frozen=True)
class Recipe:
    """A configured recipe; it stands where a run takes a method."""

    name: ClassVar[str] = "recipe"

    title: str
    steps: tuple[Step, ...]

    @classmethod
    def configured(cls, config: RecipeConfig) -> Recipe:
        """Return the recipe, or raise ConfigError for an unknown method or knob."""
        return cls(config.title, tuple(Step(step.configured(), step.recalibrate) for step in config.steps))

    @property
    def knobs(self) -> dict[str, Any]:
        """Every setting of every step, as ``NUMBER.METHOD.KNOB`` and JSON values."""
        return {
            f"{number}.{step.method.name}.{knob}": value
            for number, step in enumerate(self.steps, 1)
            for knob, value in {**step.method.knobs, "recalibrate": step.recalibrate}.items()
        }

    @property
    def stages(self) -> frozenset[str]:
        """Plan stages that the steps write."""
        return frozenset().union(*(step.method.stages for step in self.steps))

    @property
    def measured(self) -> frozenset[str]:
        """Statistics that the steps read or write, whatever model they are measured on."""
        return frozenset().union(*(step.method.measured for step in self.steps))

    @property
    def needs(self) -> frozenset[str]:
        """Statistics that the steps read."""
        return frozenset().union(*(step.method.needs for step in self.steps))

    @property
    def anew(self) -> bool:
        """Whether a step measures what the steps before it leave."""
        return any(step.recalibrate for step in self.steps[1:])

    @property
    def of_source(self) -> frozenset[str]:
        """Those of them that are measured on the source."""
        own = (step.method.measured for index, step in enumerate(self.steps) if index == 0 or not step.recalibrate)
        return frozenset().union(*own)

    @property
    def probing(self) -> bool:
        """Whether a step has to run the model."""
        return any(step.method.probing for step in self.steps)

    def decide(self, calibrator: Calibrator, checkpoint: Checkpoint, store: Store) -> tuple[Plan, Stats]:
        """Return the composed plan and the statistics that writing it needs, both in the source's coordinates.

        Args:
            calibrator: measures the source, and what earlier steps leave where a step is to see that.
            checkpoint: the source.
            store: gets the checkpoints between steps that are measured anew.

        Raises:
            RefusedError: a step does not apply to what the steps before it leave.
            PlanError: one plan cannot state what the steps do.
        """
        inventory = checkpoint.inventory
        source = calibrator.stats_for(self)
        plan = Plan.identity(inventory)
        moments: dict[str, tuple[Array | None, ...]] = {}
        for index, step in enumerate(self.steps):
            anew = step.recalibrate and index > 0
            if step.method.probing and index > 0 and not anew:
                raise RefusedError(f"step {index + 1}, {step.method.name}, runs the model: give it `recalibrate: true`")
            here = calibrator
            if anew:
                so_far = Stats(moments, source.tokens, source.meta)
                path = write_checkpoint(checkpoint, plan, store, {"recipe": self.title}, so_far, calibrator.device)
                made = Checkpoint.open(path, trust_remote_code=checkpoint.trust_remote_code)
                here = calibrator.on(made, step.method.measured)
            stats = here.stats_for(step.method) if anew else source.restricted(plan)
            if anew and (twice := sorted(set(moments) & step.method.moments)):
                raise RefusedError(
                    f"step {index + 1}, {step.method.name}, and a step before it both write from {', '.join(twice)}, which one "
                    "plan can hold once: give it `recalibrate: false`, or write the checkpoint and compress that"
                )
            own = step.method.plan(result(plan, inventory), stats, here.probe_for(step.method))
            moments |= {
                name: expanded(stats, name, plan, inventory) if anew else source.values[name]
                for name in own.moments
                if anew or name in source.values  # others are measured when the plan is written
            }
            plan = compose(plan, own, inventory)
        return plan, Stats(moments, source.tokens, source.meta)


def expanded(stats: Stats, name: str, plan: Plan, inventory: Inventory) -> tuple[Array | None, ...]:
    """Return statistic ``name`` of the checkpoint that ``plan`` makes of ``inventory`` in the coordinates of the source.

    Members of a merged expert all get its values, though its tokens count once; experts and channels that are gone get zeros.

    Args:
        stats: statistics of the checkpoint that was made.
        name: of one of them.
        plan: what was made of each layer of the source.
        inventory: the source.

    Returns:
        A value for each layer of the source, None where the plan drops the block or nothing was measured.
    """
    remaining = iter(stats.values[name])
    values: list[Array | None] = []
    for layer_plan, layer in zip(plan.layers, inventory.layers, strict=True):
        value = None if layer_plan.drop == "block" else next(remaining)
        if value is not None and layer_plan.channels is not None:
            width = next(layer.with_role("expert.gate")).shape[0]
            value = _with_channels(value, name, layer_plan.channels, width)
        if value is not None and layer_plan.experts is not None:
            value = _widened(value, name, layer_plan, layer.experts)
        values.append(value)
    return tuple(values)


def _with_channels(value: Array, name: str, channels: Sequence[Sequence[int]], width: int) -> Array:
    """Return ``value`` with the channels of each expert in their places among ``width``."""
    dims = CATALOGUE[name].dims
    if "F" not in dims:
        return value
    wide = np.zeros(
        [width if letter == "F" else size for letter, size in zip(dims, value.shape, strict=True)], value.dtype
    )
    for expert, kept in enumerate(channels):
        few = np.arange(len(kept))
        if dims == ("E", "F", "F"):
            wide[expert][np.ix_(kept, kept)] = value[expert][np.ix_(few, few)]
        else:
            wide[expert][list(kept)] = value[expert][few]
    return wide


def _widened(value: Array, name: str, plan: LayerPlan, experts: int) -> Array:
    assert plan.experts is not None
    place = {expert: index for index, expert in enumerate(plan.experts)}
    if name != TOKENS:  # the tokens of a merged expert are counted once, by the one in whose place it stands
        place |= {member: place[merge.into] for merge in plan.merges for member in merge.members}
    for axis, letter in enumerate(CATALOGUE[name].dims):
        if letter != "E":
            continue
        shape = list(value.shape)
        shape[axis] = experts
        wide = np.zeros(shape, dtype=value.dtype)
        np.moveaxis(wide, axis, 0)[list(place)] = np.moveaxis(value, axis, 0)[list(place.values())]
        value = wide
    return value
