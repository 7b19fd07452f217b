"""What becomes of one decoder layer: the entry of a plan, in the coordinates of the source's layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from methods.framework.channel_text import channel_text, channels_of
from methods.framework.inside import Bases, LowRank, Quantisation, Sparsity

STAGES = ("blocks", "sublayers", "experts", "channels", "rank", "sparsity", "bits")
"""Stages that a plan can describe, in the order in which they are applied."""

WITHOUT_EXPERTS = frozenset({"blocks", "sublayers"})
"""Those that also apply to a model without routed experts."""

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
            columns of down), ascending, at least one; None keeps all. Files may state those of an expert as text
            (``channel_text``).
        rank: matrices that are stored as factors; None leaves them whole.
        bases: gate and up as mixtures of bases that the layer's experts share; None leaves them whole.
        sparsity: weights of the experts, or of all linear layers, that become zero, after merging; None leaves them dense.
        bits: how the weights that are left are stored in few bits; None keeps their type. Beside ``drop='moe'`` these two may
            state what becomes of the attention.
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

    @field_validator("channels", mode="before")
    @classmethod
    def _listed(cls, channels: Any) -> Any:
        if not isinstance(channels, list):
            return channels
        return [channels_of(own) if isinstance(own, str) else own for own in channels]

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if fault := _drop_fault(self) or _order_fault(self) or _inside_fault(self) or _selection_fault(self):
            raise ValueError(fault)
        return self

    def document(self) -> dict[str, Any]:
        """Return the layer as JSON values, neutral fields left out, the channels of each expert as text."""
        stated = self.model_dump(exclude_defaults=True, mode="json", exclude={"channels"})
        return stated if self.channels is None else {**stated, "channels": [channel_text(own) for own in self.channels]}

    @property
    def stages(self) -> frozenset[str]:
        """Stages that this layer uses."""
        stated = {
            "blocks": self.drop == "block",
            "sublayers": self.drop == "moe",
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
        return self.drop == "none" and not self.stages.isdisjoint(INSIDE)

    @property
    def linear(self) -> bool:
        """Whether linear layers beside the routed experts are changed."""
        return any(part is not None and part.scope == "all" for part in (self.sparsity, self.bits))

    @property
    def moments(self) -> frozenset[str]:
        """Names of the statistics whose values go into this layer, where it has what they are of."""
        parts = (part.moments for part in (self.rank, self.sparsity, self.bits) if part is not None)
        found = frozenset({"routed_output_mean"} if self.constants else ()).union(*parts)
        return found if self.drop == "none" else frozenset(name for name in found if name.startswith("attention_"))

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


def _ascending(indices: Sequence[int]) -> bool:
    return list(indices) == sorted(set(indices))


def _drop_fault(plan: LayerPlan) -> str | None:
    """Return what a dropped layer states beside being dropped, or None."""
    if plan.drop == "none":
        return None
    left: dict[str, Any] = {}
    if plan.drop == "moe":
        stated = {"sparsity": plan.sparsity, "bits": plan.bits}
        left = {name: part for name, part in stated.items() if part is not None and part.scope == "all"}
        if plan.bits is not None and plan.bits.members is not None:
            return "members choose AWQ's scale of the inputs of experts, which are dropped"
    if plan != LayerPlan.model_construct(drop=plan.drop, **left):
        return f"a layer with drop={plan.drop!r} has nothing else left to state" + (
            ", but zeros and few bits with scope='all' of its attention" if plan.drop == "moe" else ""
        )
    return None


def _order_fault(plan: LayerPlan) -> str | None:
    """Return which indices are not ascending and distinct, or None."""
    for name, indices in (("experts", plan.experts), ("constants", plan.constants)):
        if indices is not None and not _ascending(indices):
            return f"{name} must be ascending and distinct, found {list(indices)}"
    for kept in plan.channels or ():
        if not kept or not _ascending(kept):
            return f"the channels of an expert must be one or more, ascending and distinct, found {kept}"
    return None


def _inside_fault(plan: LayerPlan) -> str | None:
    """Return why no matrix could be stored in all of the stated forms at once, or None."""
    if plan.rank is not None and plan.bases is not None:
        return "rank and bases: the matrices of a layer are factored in one of these ways"
    factored = plan.rank is not None or plan.bases is not None
    if factored and (plan.sparsity is not None or plan.bits is not None):
        return "factors are neither made sparse nor stored in few bits: there is no kernel that would serve them"
    return None


def _selection_fault(plan: LayerPlan) -> str | None:
    """Return why ``experts``, ``merges`` and ``constants`` contradict each other, or None."""
    if plan.experts is None:
        if plan.merges or plan.constants:
            return "merges or constants without experts: list those that stay"
        return None
    if not plan.experts:
        return "experts is empty; to remove all of them use drop='moe'"
    intos = [merge.into for merge in plan.merges]
    if not _ascending(intos) or not set(intos) <= set(plan.experts):
        return f"merges must be ordered by `into`, each of which stays, found {intos}"
    members = [member for merge in plan.merges for member in merge.members]
    gone = [*(member for member in members if member not in intos), *plan.constants]
    if len(set(members)) < len(members) or len(set(gone)) < len(gone) or set(gone) & set(plan.experts):
        return "each expert can stay, be merged into one other, or become a constant: only one of these"
    if plan.constants and plan.router != "map":
        return "constants need router='map', which keeps the rows that lead to them"
    return None
