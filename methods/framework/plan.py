"""The plan: a small, serialisable blueprint of a compressed checkpoint, in the source's coordinates.

A plan is a normal form, not a list of operations. Stages have a fixed order: blocks dropped, MoE sub-layers dropped,
experts selected, merged or replaced by a constant, channels cut, matrices factored, weights zeroed, the rest in few bits.
Two methods that decide the same thing give plans with the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from methods.framework.errors import PlanError
from methods.framework.inside_fit import inside_misfit, linear_misfit, normal_form
from methods.framework.inventory import Inventory, LayerInventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.outside import an_object, parse_json
from methods.framework.wording import wording

SCHEMA = 1


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

    @property
    def moments(self) -> frozenset[str]:
        """Names of the statistics whose values go into the checkpoint, so that writing it needs them."""
        return frozenset().union(*(layer.moments for layer in self.layers))

    def dumps(self) -> str:
        """Return its JSON: sorted keys, no blanks, neutral fields left out, channels as text."""
        return json.dumps(self.document(), sort_keys=True, separators=(",", ":"))

    def document(self) -> dict[str, Any]:
        """Return the plan as JSON values, neutral fields left out, channels as text."""
        return self._with([layer.document() for layer in self.layers])

    def _with(self, layers: list[dict[str, Any]]) -> dict[str, Any]:
        return {"schema": self.schema_version, "family": self.family, "layers": layers}

    @classmethod
    def loads(cls, text: str | bytes) -> Plan:
        """Read a plan from JSON; a ``provenance`` entry beside the plan's own fields is ignored.

        Raises:
            PlanError: not JSON, an unknown field, or a field with a value that is not allowed.
        """
        what = f"this is not a plan of schema {SCHEMA}"
        document = an_object(parse_json(text, what, PlanError), what, PlanError)
        document.pop("provenance", None)
        try:
            return cls.model_validate(document)
        except (ValidationError, RecursionError) as error:
            detail = wording(error, document) if isinstance(error, ValidationError) else str(error)
            raise PlanError(f"{what}: {detail}") from error

    @property
    def digest(self) -> str:
        """SHA-256 in hexadecimal of the JSON in which every channel is a number, however files state it."""
        layers = [layer.model_dump(exclude_defaults=True, mode="json") for layer in self.layers]
        canonical = json.dumps(self._with(layers), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

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
        if reason := without_attention([i for i, layer in enumerate(self.layers) if layer.drop == "block"], inventory):
            raise PlanError(reason)
        for index, (plan, layer) in enumerate(zip(self.layers, inventory.layers, strict=True)):
            if reason := _misfit(plan, layer, inventory):
                raise PlanError(f"layer {index}: {reason}")


def without_attention(dropped: Sequence[int], inventory: Inventory) -> str | None:
    """Return why these decoder layers cannot go together, or None: one with attention stays where there are any."""
    attending = inventory.attending_layers
    if not attending or not set(attending) <= set(dropped):
        return None
    return (
        f"the plan drops every decoder layer with attention ({', '.join(map(str, attending))}), and transformers cannot run what "
        f"is left with a cache; of these {len(attending)}, at most {len(attending) - 1} may go"
    )


def _normalise(plan: LayerPlan, layer: LayerInventory) -> LayerPlan:
    """Return ``plan`` without statements that are already true of ``layer``."""
    if plan.drop != "none":
        return plan
    merges = plan.merges
    if plan.router != "map":  # a member without weight is merely removed, and an expert alone is no merge
        merges = tuple(merge for merge in map(_without_idle_members, merges) if merge is not None)
    router = plan.router if merges or plan.constants else "slice"
    experts = None if plan.experts is not None and len(plan.experts) == layer.experts else plan.experts
    stated = {"experts": experts, "merges": merges, "router": router, "top_k": None, **normal_form(plan, layer)}
    normal = plan.model_copy(update=stated)
    rows = layer.rows if normal.rows is None else len(normal.rows)
    return normal.model_copy(update={"top_k": None if plan.top_k == min(layer.top_k, rows) else plan.top_k})


NO_MAP = (
    "the router's score multiplies what an expert takes in, so neither can several router rows lead to one expert nor can a "
    "constant stand for one; select experts, or merge them with router rows that go"
)


def _without_idle_members(merge: Merge) -> Merge | None:
    """Return ``merge`` without members of weight 0 (``into`` excepted), or None where ``into`` alone remains as it is."""
    kept = [(m, w) for m, w in zip(merge.members, merge.weights, strict=True) if w != 0.0 or m == merge.into]
    if len(kept) == 1:
        return None if kept[0][1] == 1.0 and merge.kernel != "svd" else merge
    members, weights = zip(*kept, strict=True)
    return merge.model_copy(update={"members": members, "weights": weights})


def _misfit(plan: LayerPlan, layer: LayerInventory, inventory: Inventory) -> str | None:
    """Return why ``plan`` does not fit ``layer``, or None."""
    if reason := linear_misfit(plan, layer):
        return reason
    if layer.mlp != "moe":
        stated = {"sparsity": plan.sparsity, "bits": plan.bits}
        everywhere = {name: None for name, part in stated.items() if part is not None and part.scope == "all"}
        if plan.model_copy(update=everywhere).stages - ({"blocks", "sublayers"} if layer.droppable else {"blocks"}):
            return f"its feed-forward sub-layer is {layer.mlp!r}: there are no experts to change"
        return None
    if plan.drop != "none":
        return None
    if plan.experts is not None:
        if layer.expert_map is not None:
            return (
                "several of its router rows lead to one expert already, so experts cannot be selected or merged again"
            )
        named = {*plan.experts, *plan.constants, *(m for merge in plan.merges for m in merge.members)}
        if max(named) >= layer.experts:
            return f"expert {max(named)} does not exist; the layer has {layer.experts}"
        ranks = [merge.rank for merge in plan.merges if merge.rank is not None]
        if ranks and max(ranks) > inventory.hidden:
            return f"rank {max(ranks)} exceeds the hidden size {inventory.hidden}"
    if plan.inside and layer.biased:
        return (
            "its experts have biases, and nothing that loads experts in another form knows these; select or merge them"
        )
    if inventory.router.weighs_inputs and plan.expert_map is not None:
        return NO_MAP
    return inside_misfit(plan, layer) or _routing_misfit(plan, layer, inventory)


def _routing_misfit(plan: LayerPlan, layer: LayerInventory, inventory: Inventory) -> str | None:
    """Return why the router could not choose ``top_k`` of the rows that stay, or None."""
    router, rows = inventory.router, plan.rows
    left = layer.rows if rows is None else len(rows)
    top_k = plan.top_k or min(layer.top_k, left)
    if top_k > left:
        return f"top_k {top_k} exceeds the {left} experts that stay"
    if router.score == "sparsemixer" and top_k != 2:
        return f"top_k {top_k} is asked for, and a sparsemixer router always takes two experts"
    if left < router.fewest_experts(top_k):
        return (
            f"the router picks {top_k} experts from {router.groups_kept} of {router.groups} groups, which takes at least "
            f"{router.fewest_experts(top_k)} experts in all; {left} stay"
        )
    if rows is not None and router.groups > 1:
        size = layer.experts // router.groups
        counts = [sum(1 for e in rows if e // size == g) for g in range(router.groups)]
        if len(set(counts)) > 1:
            return (
                f"the router picks among {router.groups} groups, so each must keep the same number of experts: {counts}"
            )
    return None
