"""Composition of plans by substitution: first one, then another that was made for the first one's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from methods.framework.errors import PlanError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.transfer import result


def compose(first: Plan, second: Plan, inventory: Inventory) -> Plan:
    """Return one plan on ``inventory`` that does what ``first`` and then ``second`` do.

    Args:
        first: plan on ``inventory``.
        second: plan on ``result(first, inventory)``, in that checkpoint's own numbering of layers and experts.
        inventory: the source.

    Raises:
        PlanError: ``second`` does not fit the result of ``first``, or one plan cannot state what the two do.
    """
    first = first.normalised(inventory)
    try:
        second = second.normalised(result(first, inventory))
    except PlanError as error:
        raise PlanError(f"the second plan does not fit what the first leaves: {error}") from error
    remaining = iter(second.layers)
    layers = [
        plan if plan.drop == "block" else _substituted(plan, next(remaining), layer.experts)
        for plan, layer in zip(first.layers, inventory.layers, strict=True)
    ]
    return Plan.of(inventory, layers)


def _substituted(first: LayerPlan, second: LayerPlan, experts: int) -> LayerPlan:
    """Return the two decisions on one surviving decoder layer, of so many experts in the source, as one."""
    if second.drop == "block":
        return second
    _check_order(first, second)
    if "moe" in (first.drop, second.drop):
        return LayerPlan(drop="moe", **_beside_experts(first, second))
    top_k = second.top_k or first.top_k
    inside = _inside(first, second, experts)
    if second.experts is None or first.experts is None:
        decisive = first if second.experts is None else second
        return _with_top_k(decisive.model_copy(update=inside), top_k)
    place = first.experts
    earlier = {merge.into: merge for merge in first.merges}
    merges = [_in_source(merge, place, earlier) for merge in second.merges]
    used = {member for merge in merges for member in merge.members}
    kept = tuple(place[index] for index in second.experts)
    untouched = [merge for merge in first.merges if merge.into in kept and merge.into not in used]
    if (untouched or used & set(earlier)) and (second.router == "map" or (merges and first.router != second.router)):
        raise PlanError(
            f"experts that the first plan merged have one router row each ({first.router!r}), which the second plan's "
            f"router {second.router!r} cannot be put on top of; give both plans the same router, 'slice' or 'mean'"
        )
    composed = LayerPlan(
        experts=kept,
        merges=tuple(sorted([*merges, *untouched], key=lambda merge: merge.into)),
        constants=tuple(place[index] for index in second.constants),
        router=second.router if merges or second.constants else first.router,
        **inside,
    )
    return _with_top_k(composed, top_k)


def _beside_experts(first: LayerPlan, second: LayerPlan) -> dict[str, Any]:
    """Return what the two plans state about linear layers beside the experts, once these are dropped."""
    found: dict[str, Any] = {}
    for name in ("sparsity", "bits"):
        for part in (getattr(first, name), getattr(second, name)):
            if part is not None and part.scope == "all":
                found[name] = part.model_copy(update={"members": None}) if name == "bits" else part
    return found


_NAMES = {"channels": "cut channels", "rank": "factored", "bases": "mixed from bases", "sparsity": "sparse"}
_NAMES |= {"bits": "stored in few bits"}
"""Statements about the inside of experts, in the order in which they are applied, and how an expert is called afterwards."""


def _check_order(first: LayerPlan, second: LayerPlan) -> None:
    """Refuse a second plan whose statements would be applied before those of the first, where that changes numbers.

    Raises:
        PlanError: with the order that works.
    """
    order = list(_NAMES)
    done = [name for name in order if getattr(first, name) is not None]
    if not done:
        return
    state = " and ".join(_NAMES[name] for name in done)
    if second.merges:
        raise PlanError(
            f"the first plan left the experts {state}; an average of them would not be what either plan says; merge first"
        )
    for name in order:
        if getattr(second, name) is not None and order.index(name) <= order.index(done[-1]):
            raise PlanError(
                f"the first plan left the experts {state}, so they cannot be {_NAMES[name]} afterwards: the order is "
                f"{', '.join(order)}, each stated once"
            )
    shares = first.bases is not None or (first.rank is not None and first.rank.base is not None)
    if second.experts is not None and shares:
        raise PlanError("the first plan made a base for all experts of the layer; select experts first")
    if (
        second.experts is not None
        and first.bits is not None
        and first.bits.kernel == "awq"
        and first.channels is not None
    ):
        raise PlanError(
            "the first plan scaled the inputs of experts whose channels it cut, some of which would no longer be stated; select "
            "experts first"
        )


def _inside(first: LayerPlan, second: LayerPlan, experts: int) -> dict[str, Any]:
    """Return what the two plans state about the inside of the experts that stay, in their order and source indices."""
    channels, rank = first.channels, first.rank
    if second.experts is not None:
        channels = None if channels is None else tuple(channels[index] for index in second.experts)
        if rank is not None:
            rank = rank.model_copy(update={"ranks": tuple(rank.ranks[index] for index in second.experts)})
    own = second.rank
    if own is not None and own.base is not None and first.experts is not None:
        members = tuple(first.experts[member] for member in own.base.members)
        own = own.model_copy(update={"base": own.base.model_copy(update={"members": members})})
    few = second.bits
    if few is not None and few.members is not None and first.experts is not None:
        few = few.model_copy(update={"members": tuple(first.experts[member] for member in few.members)})
    bits = first.bits
    if bits is not None and bits.kernel == "awq" and second.experts is not None and bits.members is None:
        bits = bits.model_copy(update={"members": _members_of_scale(first, second, experts)})
    return {
        "channels": second.channels or channels,
        "rank": own or rank,
        "bases": second.bases or first.bases,
        "sparsity": second.sparsity or first.sparsity,
        "bits": few or bits,
    }


def _members_of_scale(first: LayerPlan, second: LayerPlan, experts: int) -> tuple[int, ...]:
    """Return the experts by which AWQ chose the scale of their inputs, before the second plan selected among them.

    Raises:
        PlanError: one of them is a merge that the second plan removes, so that one plan could not state it.
    """
    members = tuple(range(experts)) if first.experts is None else first.experts
    assert second.experts is not None
    stays = {members[index] for index in second.experts}
    if gone := [merge.into for merge in first.merges if merge.into not in stays]:
        raise PlanError(
            f"the first plan chose AWQ's scale with the merged experts {gone} among them, which the second removes, so that one "
            "plan cannot state it; select experts first"
        )
    return members


def _in_source(merge: Merge, place: Sequence[int], earlier: Mapping[int, Merge]) -> Merge:
    """Return ``merge``, made for the result of a first plan, in source coordinates; a merge of averages is an average."""
    factors: dict[int, float] = {}
    for member, weight in zip(merge.members, merge.weights, strict=True):
        inner = earlier.get(place[member])
        if inner is None:
            factors[place[member]] = weight
            continue
        if merge.kernel != "mean" or inner.kernel != "mean" or abs(sum(inner.weights) - 1.0) > 1e-9:
            raise PlanError(
                f"expert {place[member]} is a merge by {inner.kernel!r} and is merged again by {merge.kernel!r}: only plain "
                "averages whose weights add up to 1 can be averaged again; apply the first plan and compress its result"
            )
        factors |= {m: weight * w for m, w in zip(inner.members, inner.weights, strict=True)}
    members = tuple(sorted(factors))
    weights = tuple(factors[m] for m in members)
    return Merge(into=place[merge.into], members=members, weights=weights, kernel=merge.kernel, rank=merge.rank)


def _with_top_k(plan: LayerPlan, top_k: int | None) -> LayerPlan:
    if top_k is not None and plan.rows is not None:
        top_k = min(top_k, len(plan.rows))
    return plan.model_copy(update={"top_k": top_k})
