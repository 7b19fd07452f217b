"""The contract of a method: a frozen, configured decision rule that reads shapes and statistics and returns a plan."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from methods.framework.errors import ConfigError, RefusedError, UnknownNameError
from methods.framework.inside_fit import has_whole_matrices
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import INSIDE, WITHOUT_EXPERTS, LayerPlan
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from methods.framework.wording import wording

Share = Annotated[float, Field(gt=0.0, le=1.0)]
Keep = Share | Annotated[tuple[Share, ...], Field(min_length=1, max_length=64)]
"""What remains: one share in (0, 1], or knots that are interpolated linearly over the depth of the MoE layers."""


class Method(BaseModel, abc.ABC):
    """A compression method. Its fields are its knobs; it holds no weights, no files, no clock and no random state.

    Class attributes:
        name: unique key in the registry.
        title: name for tables.
        source: paper and equation.
        stages: plan stages that it writes (see ``methods.framework.layer_plan.STAGES``).
        equivariant: whether relabelling the experts relabels the plan (law 7); false only for ``random``.
        shares: the values of ``keep`` that exist; empty where all between 0 and 1 do.
        stores_less: whether what it stores shrinks with ``keep``; false where weights only become zero, or are only used less.
        unsearched: knobs that a search leaves alone unless it names them, since they go with few values of others.
        law_knobs: settings under which the laws try it, where its own take long: fewer steps of the same search.
        law_experts: experts of a layer on which the laws try it; fewer where it tries every set of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    stages: ClassVar[frozenset[str]]
    equivariant: ClassVar[bool] = True
    shares: ClassVar[tuple[float, ...]] = ()
    stores_less: ClassVar[bool] = True
    unsearched: ClassVar[frozenset[str]] = frozenset()
    law_knobs: ClassVar[Mapping[str, Any]] = {}
    law_experts: ClassVar[int] = 16

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

    @property
    def moments(self) -> frozenset[str]:
        """Names of the statistics whose values its plans write into the checkpoint (see ``Plan.moments``)."""
        return frozenset()

    @property
    def anew(self) -> bool:
        """Whether it measures a model that is compressed in part; only recipes do."""
        return False

    @property
    def measured(self) -> frozenset[str]:
        """Names of all statistics that a run has to measure: those that it reads, and those that it writes."""
        return self.needs | self.moments

    @property
    def maps(self) -> bool:
        """Whether its plans let several router rows lead to one expert, or rows lead to constants."""
        return getattr(self, "router", None) == "map"

    def refuse(self, inventory: Inventory) -> str | None:
        """Return the reason why the method does not apply to this model, or None."""
        if not (inventory.droppable_layers if self.stages <= WITHOUT_EXPERTS else inventory.moe_layers):
            return "the model has no MoE layer"
        if not self.stages.isdisjoint(INSIDE) and any(
            layer.linear_bits is not None or not has_whole_matrices(layer.form) for layer in inventory.layers
        ):
            return (
                "experts of this model are stored in another form already; state the steps in one recipe on the source"
            )
        if not self.stages.isdisjoint(INSIDE) and any(layer.biased for layer in inventory.layers):
            return "experts of this model have biases, and nothing that loads experts in another form knows these"
        if self.maps and inventory.router.weighs_inputs:
            other = "; set router to slice" if hasattr(self, "router") else ""
            return (
                "its router rows would lead to other experts or to constants, and the router of this model multiplies what one "
                f"expert takes in{other}"
            )
        if "experts" in self.stages and any(layer.expert_map is not None for layer in inventory.layers):
            return "router rows of this model share experts already, so experts cannot be selected or merged again"
        return None

    @classmethod
    def least_keep(cls, inventory: Inventory) -> float:
        """Return the smallest ``keep`` of a layer: the experts that its router needs; or one layer, where layers are dropped."""
        if "experts" not in cls.stages:
            return 1.0 / len(inventory.layers)
        layers = [inventory.layers[index] for index in inventory.moe_layers]
        return max(inventory.router.fewest_experts(layer.top_k) / layer.experts for layer in layers)

    def plan(self, inventory: Inventory, stats: Stats, probe: Probe | None = None) -> Plan:
        """Return the plan.

        Args:
            inventory: the model.
            stats: measured statistics, of which no others than ``needs`` are read.
            probe: the running model; only methods with ``probing`` need it.

        Raises:
            RefusedError: the method does not apply, or ``keep`` asks for less than the model can be reduced to.
        """
        if reason := self.refuse(inventory):
            raise RefusedError(f"{self.name}: {reason}")
        return Plan.of(inventory, self._decided(inventory, stats.only(self.needs), probe))

    @property
    def probing(self) -> bool:
        """Whether ``plan`` has to run the model on candidates, that is, needs a probe."""
        return False

    def _decided(self, inventory: Inventory, stats: Stats, probe: Probe | None) -> list[LayerPlan]:
        return self.decide(inventory, stats)

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
            raise ConfigError(f"method {cls.name}, {wording(error, knobs)}") from error


class LayerwiseMethod(Method):
    """A method that decides each MoE layer from that layer's statistics alone, so calibration may be ``sequential``."""

    @abc.abstractmethod
    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Return what becomes of one MoE layer.

        Args:
            inventory: the model.
            stats: measured statistics, of which only those of this layer may be read.
            layer: its index.
        """

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Decide layer by layer; layers without experts stay as they are."""
        moe = set(inventory.moe_layers)
        return [
            self.decide_layer(inventory, stats, index) if index in moe else LayerPlan()
            for index in range(len(inventory.layers))
        ]


class ProbingMethod(Method):
    """A method that runs the model on candidates, through the ``Probe`` that ``bench`` offers."""

    @property
    def probing(self) -> bool:
        """True, unless a setting makes the statistics suffice."""
        return True

    def _decided(self, inventory: Inventory, stats: Stats, probe: Probe | None) -> list[LayerPlan]:
        if not self.probing:
            return self.decide(inventory, stats)
        if probe is None:
            raise ConfigError(f"{self.name} runs the model on its candidates, but was given no probe of the model")
        return self.decide_by_probe(inventory, stats, probe)

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Refuse: statistics alone do not suffice."""
        raise ConfigError(f"{self.name} cannot decide without a probe of the model")

    @abc.abstractmethod
    def decide_by_probe(self, inventory: Inventory, stats: Stats, probe: Probe) -> list[LayerPlan]:
        """Return one entry per decoder layer.

        Args:
            inventory: the model.
            stats: measured statistics; no more than ``needs``.
            probe: runs the model on candidates.
        """
