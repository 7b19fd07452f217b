"""The contract of a method: a frozen, configured decision rule that reads shapes and statistics and returns a plan."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from methods.errors import ConfigError, RefusedError, UnknownNameError
from methods.inventory import Inventory
from methods.plan import LayerPlan, Plan
from methods.stats import Stats

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Keep = Share | Annotated[tuple[Share, ...], Field(min_length=1, max_length=64)]
"""What remains: one share in (0, 1], or knots that are interpolated linearly over the depth of the MoE layers."""


class Method(BaseModel, abc.ABC):
    """A compression method. Its fields are its knobs; it holds no weights, no files, no clock and no random state.

    Class attributes:
        name: unique key in the registry.
        title: name for tables.
        source: paper and equation.
        stages: plan stages that it writes (see ``methods.plan.STAGES``).
        equivariant: whether relabelling the experts relabels the plan (law 7); false only for ``random``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    stages: ClassVar[frozenset[str]]
    equivariant: ClassVar[bool] = True

    keep: Keep = Field(default=0.5, description="share of the method's unit that remains, in (0, 1]")

    @property
    def knobs(self) -> dict[str, Any]:
        """Every setting as JSON values, without fields that a subclass has fixed to one value."""
        fixed = {name for name, field in type(self).model_fields.items() if len(get_args(field.annotation)) == 1}
        return self.model_dump(mode="json", exclude=fixed)

    @property
    def needs(self) -> frozenset[str]:
        """Names of the statistics that ``plan`` may read."""
        return frozenset()

    def refuse(self, inventory: Inventory) -> str | None:
        """Return the reason why the method does not apply to this model, or None."""
        return None if inventory.moe_layers else "the model has no MoE layer"

    def plan(self, inventory: Inventory, stats: Stats) -> Plan:
        """Return the plan.

        Raises:
            RefusedError: the method does not apply, or ``keep`` asks for less than the model can be reduced to.
        """
        if reason := self.refuse(inventory):
            raise RefusedError(f"{self.name}: {reason}")
        return Plan.of(inventory, self.decide(inventory, stats.only(self.needs)))

    @abc.abstractmethod
    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Return one entry per decoder layer; ``stats`` holds no more than ``needs``."""

    @classmethod
    def neutral(cls) -> Self:
        """Return the setting that changes nothing (law 5)."""
        return cls(keep=1.0)

    @classmethod
    def configured(cls, knobs: Mapping[str, Any]) -> Self:
        """Return the method with these knobs.

        Raises:
            ConfigError: an unknown knob (with the closest match) or a value out of range.
        """
        for knob in knobs:
            if knob not in cls.model_fields:
                raise UnknownNameError(f"knob of method {cls.name}", knob, cls.model_fields)
        try:
            return cls.model_validate(dict(knobs))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "knobs"
            raise ConfigError(f"method {cls.name}, {where}: {first['msg']}, found {first['input']!r}") from error


class LayerwiseMethod(Method):
    """A method that decides each MoE layer from that layer's statistics alone, so calibration may be ``sequential``."""

    @abc.abstractmethod
    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Return what becomes of MoE layer ``layer``; reads statistics of that layer only."""

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Decide layer by layer; layers without experts stay as they are."""
        moe = set(inventory.moe_layers)
        return [
            self.decide_layer(inventory, stats, index) if index in moe else LayerPlan()
            for index in range(len(inventory.layers))
        ]
