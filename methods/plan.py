"""The plan: a small, serialisable blueprint of a compressed checkpoint, in the source's coordinates.

A plan is a normal form, not a list of operations. Stages have a fixed order: blocks dropped, MoE sub-layers dropped,
experts selected. Two methods that decide the same thing give plans with the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from methods.errors import PlanError
from methods.inventory import Inventory, LayerInventory

SCHEMA = 1
STAGES = ("blocks", "sublayers", "experts")
"""Stages that a plan can describe, in the order in which they are applied."""


class LayerPlan(BaseModel):
    """What becomes of one decoder layer of the source.

    Args:
        drop: ``block`` removes the whole decoder layer, ``moe`` its MoE sub-layer with the norm before it.
        experts: source indices of the routed experts that stay, ascending; None keeps all. The router's rows (and
            its bias and correction bias) are sliced alike.
        top_k: experts per token afterwards; None means min(source top-k, experts that stay).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: Literal["none", "moe", "block"] = "none"
    experts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _normal(self) -> Self:
        if self.drop != "none" and (self.experts is not None or self.top_k is not None):
            raise ValueError(f"a layer with drop={self.drop!r} has no experts or top_k left to state")
        if self.experts is not None:
            if not self.experts:
                raise ValueError("experts is empty; to remove all of them use drop='moe'")
            if list(self.experts) != sorted(set(self.experts)):
                raise ValueError(f"experts must be ascending and distinct, found {list(self.experts)}")
        return self

    @property
    def stages(self) -> frozenset[str]:
        """Stages that this layer uses."""
        if self.drop != "none":
            return frozenset({"blocks" if self.drop == "block" else "sublayers"})
        neutral = self.experts is None and self.top_k is None
        return frozenset() if neutral else frozenset({"experts"})


class Plan(BaseModel):
    """Blueprint of a compressed checkpoint: one entry per decoder layer of the source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = Field(default=1, alias="schema")
    family: str
    layers: tuple[LayerPlan, ...]

    @classmethod
    def identity(cls, inventory: Inventory) -> Plan:
        """Return the plan that changes nothing."""
        return cls(family=inventory.family, layers=tuple(LayerPlan() for _ in inventory.layers))

    @classmethod
    def of(cls, inventory: Inventory, layers: Sequence[LayerPlan]) -> Plan:
        """Return the normalised and validated plan with these layers."""
        return cls(family=inventory.family, layers=tuple(layers)).normalised(inventory)

    def normalised(self, inventory: Inventory) -> Plan:
        """Validate against ``inventory`` and drop every statement that changes nothing.

        Raises:
            PlanError: the plan does not fit the model; the message says where and why.
        """
        self.validate_for(inventory)
        layers = tuple(_normalise(plan, layer) for plan, layer in zip(self.layers, inventory.layers, strict=True))
        return self.model_copy(update={"layers": layers})

    @property
    def stages(self) -> frozenset[str]:
        """Stages that the plan uses; empty for the identity."""
        return frozenset().union(*(layer.stages for layer in self.layers))

    def dumps(self) -> str:
        """Return canonical JSON: sorted keys, no blanks, neutral fields left out."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON values, neutral fields left out."""
        layers = [layer.model_dump(exclude_defaults=True, mode="json") for layer in self.layers]
        return {"schema": self.schema_version, "family": self.family, "layers": layers}

    @classmethod
    def loads(cls, text: str | bytes) -> Plan:
        """Read a plan from JSON; a ``provenance`` entry beside the plan's own fields is ignored.

        Raises:
            PlanError: not JSON, an unknown field, or a field with a value that is not allowed.
        """
        try:
            document: dict[str, Any] = json.loads(text)
            document.pop("provenance", None)
            return cls.model_validate(document)
        except (ValueError, AttributeError) as error:
            detail = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise PlanError(f"this is not a plan of schema {SCHEMA}: {detail}") from error

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON, in hexadecimal."""
        return hashlib.sha256(self.dumps().encode()).hexdigest()

    def validate_for(self, inventory: Inventory) -> None:
        """Check that the plan fits the model.

        Raises:
            PlanError: with the layer and the reason.
        """
        if self.family != inventory.family:
            raise PlanError(f"the plan is for family {self.family!r}, the model is of {inventory.family!r}")
        if len(self.layers) != len(inventory.layers):
            raise PlanError(f"the plan has {len(self.layers)} layers, the model has {len(inventory.layers)}")
        if all(layer.drop == "block" for layer in self.layers):
            raise PlanError("the plan drops every decoder layer; keep at least one")
        for index, (plan, layer) in enumerate(zip(self.layers, inventory.layers, strict=True)):
            if reason := _misfit(plan, layer, inventory):
                raise PlanError(f"layer {index}: {reason}")


def _normalise(plan: LayerPlan, layer: LayerInventory) -> LayerPlan:
    """Return ``plan`` without statements that are already true of ``layer``."""
    experts = None if plan.experts is not None and len(plan.experts) == layer.experts else plan.experts
    left = layer.experts if experts is None else len(experts)
    top_k = None if plan.top_k == min(layer.top_k, left) else plan.top_k
    return LayerPlan(drop=plan.drop, experts=experts, top_k=top_k)


def _misfit(plan: LayerPlan, layer: LayerInventory, inventory: Inventory) -> str | None:
    """Return why ``plan`` does not fit ``layer``, or None."""
    if layer.mlp != "moe":
        if plan.drop == "moe" or plan.experts is not None or plan.top_k is not None:
            return f"its feed-forward sub-layer is {layer.mlp!r}: there are no experts to change"
        return None
    if plan.drop != "none":
        return None
    left = layer.experts if plan.experts is None else len(plan.experts)
    if plan.experts is not None and plan.experts[-1] >= layer.experts:
        return f"expert {plan.experts[-1]} does not exist; the layer has {layer.experts}"
    router = inventory.router
    top_k = plan.top_k or min(layer.top_k, left)
    if top_k > left:
        return f"top_k {top_k} exceeds the {left} experts that stay"
    if left < router.fewest_experts(top_k):
        return (
            f"the router picks {top_k} experts from {router.groups_kept} of {router.groups} groups, which takes at least "
            f"{router.fewest_experts(top_k)} experts in all; {left} stay"
        )
    if plan.experts is not None and router.groups > 1:
        size = layer.experts // router.groups
        counts = [sum(1 for e in plan.experts if e // size == g) for g in range(router.groups)]
        if len(set(counts)) > 1:
            return (
                f"the router picks among {router.groups} groups, so each must keep the same number of experts: {counts}"
            )
    return None
