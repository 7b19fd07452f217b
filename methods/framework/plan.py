"""The plan: a small, serialisable blueprint of a compressed checkpoint, in the source's coordinates.

A plan is a normal form, not a list of operations. Stages have a fixed order: blocks dropped, MoE sub-layers dropped,
experts selected, merged or replaced by a constant, channels cut, matrices factored, weights zeroed, the rest in few bits.
Two methods that decide the same thing give plans with the same digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from methods.framework.errors import PlanError
from methods.framework.inside import Bases, LowRank, Quantisation, Sparsity
from methods.framework.inside_fit import inside_misfit, normal_form
from methods.framework.inventory import Inventory, LayerInventory

SCHEMA = 1
STAGES = ("blocks", "sublayers", "experts", "channels", "rank", "sparsity", "bits")
"""Stages that a plan can describe, in the order in which they are applied."""

INSIDE = frozenset({"channels", "rank", "sparsity", "bits"})
"""Those that change experts which stay, beyond merging."""


RouterRule = Literal["slice", "mean", "map"]
"""How the router follows the experts: the row of each expert that stays (``slice``), the average of the members' rows of
each merge with the merge's weights (``mean``), or all rows of everything that is named, several of which may lead to one
expert (``map``)."""


class Merge(BaseModel):
    """One expert made of several.

    Args:
        into: the member in whose place the merged expert stands; it is in ``LayerPlan.experts``.
        members: source indices, ascending, at least two, ``into`` among them.
        weights: factor of each member.
        kernel: ``mean`` adds the weighted matrices; ``aligned`` first permutes each member's hidden channels to match
            those of ``into`` (assignment on the products of weights); ``svd`` projects the weighted sum on the ``rank``
            leading left singular vectors of the members' matrices side by side.
        rank: singular vectors that ``svd`` keeps; None for the other kernels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    into: Annotated[int, Field(ge=0)]
    members: tuple[Annotated[int, Field(ge=0)], ...]
    weights: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]
    kernel: Literal["mean", "aligned", "svd"] = "mean"
    rank: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len(self.members) < 2 or list(self.members) != sorted(set(self.members)):
            raise ValueError(f"members must be two or more, ascending and distinct, found {list(self.members)}")
        if self.into not in self.members:
            raise ValueError(f"into={self.into} is not among the members {list(self.members)}")
        if len(self.weights) != len(self.members):
            raise ValueError(f"{len(self.members)} members have {len(self.weights)} weights")
        if abs(sum(self.weights)) < 1e-9:
            raise ValueError(f"the weights {list(self.weights)} add up to nothing")
        if (self.rank is not None) != (self.kernel == "svd"):
            raise ValueError(f"kernel {self.kernel!r} with rank={self.rank}: svd states a rank, the others none")
        return self


class LayerPlan(BaseModel):
    """What becomes of one decoder layer of the source.

    Args:
        drop: ``block`` removes the whole decoder layer, ``moe`` its MoE sub-layer with the norm before it.
        experts: source indices of the routed experts that stay, ascending; None keeps all. A merged expert stands at the
            index of its ``into``.
        merges: experts that are averages; ordered by ``into``.
        constants: source indices of experts that are replaced by their mean output, a vector; needs ``router='map'``.
        router: how the router's rows (and its bias and correction bias) follow; see ``RouterRule``.
        top_k: experts per token afterwards; None means min(source top-k, router rows that stay).
        channels: for each expert that stays, in order, the hidden channels that stay (source indices of rows of gate and up,
            columns of down), ascending, at least one; None keeps all.
        rank: matrices that are stored as factors; None leaves them whole.
        bases: gate and up as mixtures of bases that the layer's experts share; None leaves them whole.
        sparsity: weights of the experts that become zero, after merging; None leaves them dense.
        bits: how the weights that are left are stored in few bits; None keeps their type.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    drop: Literal["none", "moe", "block"] = "none"
    experts: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    merges: tuple[Merge, ...] = ()
    constants: tuple[Annotated[int, Field(ge=0)], ...] = ()
    router: RouterRule = "slice"
    top_k: Annotated[int, Field(ge=1)] | None = None
    channels: tuple[tuple[Annotated[int, Field(ge=0)], ...], ...] | None = None
    rank: LowRank | None = None
    bases: Bases | None = None
    sparsity: Sparsity | None = None
    bits: Quantisation | None = None

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if self.drop != "none" and self != LayerPlan.model_construct(drop=self.drop):
            raise ValueError(f"a layer with drop={self.drop!r} has nothing else left to state")
        for name, indices in (("experts", self.experts), ("constants", self.constants)):
            if indices is not None and list(indices) != sorted(set(indices)):
                raise ValueError(f"{name} must be ascending and distinct, found {list(indices)}")
        for kept in self.channels or ():
            if not kept or list(kept) != sorted(set(kept)):
                raise ValueError(f"the channels of an expert must be one or more, ascending and distinct, found {kept}")
        if self.rank is not None and self.bases is not None:
            raise ValueError("rank and bases: the matrices of a layer are factored in one of these ways")
        if (self.rank is not None or self.bases is not None) and (self.sparsity is not None or self.bits is not None):
            raise ValueError(
                "factors are neither made sparse nor stored in few bits: there is no kernel that would serve them"
            )
        if self.experts is None:
            if self.merges or self.constants:
                raise ValueError("merges or constants without experts: list those that stay")
            return self
        if not self.experts:
            raise ValueError("experts is empty; to remove all of them use drop='moe'")
        intos = [merge.into for merge in self.merges]
        if intos != sorted(set(intos)) or not set(intos) <= set(self.experts):
            raise ValueError(f"merges must be ordered by `into`, each of which stays, found {intos}")
        members = [member for merge in self.merges for member in merge.members]
        gone = [*(member for member in members if member not in intos), *self.constants]
        if len(set(members)) < len(members) or len(set(gone)) < len(gone) or set(gone) & set(self.experts):
            raise ValueError("each expert can stay, be merged into one other, or become a constant: only one of these")
        if self.constants and self.router != "map":
            raise ValueError("constants need router='map', which keeps the rows that lead to them")
        return self

    @property
    def stages(self) -> frozenset[str]:
        """Stages that this layer uses."""
        if self.drop != "none":
            return frozenset({"blocks" if self.drop == "block" else "sublayers"})
        stated = {
            "experts": self.experts is not None or self.top_k is not None,
            "channels": self.channels is not None,
            "rank": self.rank is not None or self.bases is not None,
            "sparsity": self.sparsity is not None,
            "bits": self.bits is not None,
        }
        return frozenset(stage for stage, used in stated.items() if used)

    @property
    def inside(self) -> bool:
        """Whether the experts that stay are changed beyond merging, so that their matrices are computed."""
        return not self.stages.isdisjoint(INSIDE)

    @property
    def moments(self) -> frozenset[str]:
        """Names of the statistics whose values go into this layer."""
        parts = (part.moments for part in (self.rank, self.sparsity, self.bits) if part is not None)
        return frozenset({"routed_output_mean"} if self.constants else ()).union(*parts)

    @property
    def rows(self) -> tuple[int, ...] | None:
        """Router rows that stay, as source indices, ascending; None where all do and each leads to its own expert."""
        if self.experts is None or self.router != "map":
            return self.experts
        members = (member for merge in self.merges for member in merge.members)
        return tuple(sorted({*self.experts, *self.constants, *members}))

    @property
    def expert_map(self) -> tuple[int, ...] | None:
        """Place of the expert that each of ``rows`` leads to; constants follow the experts. None without a map."""
        if self.experts is None or self.router != "map":
            return None
        place = {expert: index for index, expert in enumerate(self.experts)}
        place |= {member: place[merge.into] for merge in self.merges for member in merge.members}
        place |= {expert: len(self.experts) + index for index, expert in enumerate(self.constants)}
        rows = self.rows
        assert rows is not None
        return tuple(place[row] for row in rows)


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


def _without_idle_members(merge: Merge) -> Merge | None:
    """Return ``merge`` without members of weight 0 (``into`` excepted), or None where ``into`` alone remains as it is."""
    kept = [(m, w) for m, w in zip(merge.members, merge.weights, strict=True) if w != 0.0 or m == merge.into]
    if len(kept) == 1:
        return None if kept[0][1] == 1.0 and merge.kernel != "svd" else merge
    members, weights = zip(*kept, strict=True)
    return merge.model_copy(update={"members": members, "weights": weights})


def _misfit(plan: LayerPlan, layer: LayerInventory, inventory: Inventory) -> str | None:
    """Return why ``plan`` does not fit ``layer``, or None."""
    if layer.mlp != "moe":
        if plan.stages - {"blocks"}:
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
    return inside_misfit(plan, layer) or _routing_misfit(plan, layer, inventory)


def _routing_misfit(plan: LayerPlan, layer: LayerInventory, inventory: Inventory) -> str | None:
    """Return why the router could not choose ``top_k`` of the rows that stay, or None."""
    router, rows = inventory.router, plan.rows
    left = layer.rows if rows is None else len(rows)
    top_k = plan.top_k or min(layer.top_k, left)
    if top_k > left:
        return f"top_k {top_k} exceeds the {left} experts that stay"
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
