"""Composition of plans by substitution: first one, then another that was made for the first one's result."""

from __future__ import annotations

from methods.errors import PlanError
from methods.inventory import Inventory
from methods.plan import LayerPlan, Plan
from methods.transfer import result


def compose(first: Plan, second: Plan, inventory: Inventory) -> Plan:
    """Return one plan on ``inventory`` that does what ``first`` and then ``second`` do.

    Args:
        first: plan on ``inventory``.
        second: plan on ``result(first, inventory)``, in that checkpoint's own numbering of layers and experts.
        inventory: the source.

    Raises:
        PlanError: ``second`` does not fit the result of ``first``.
    """
    first = first.normalised(inventory)
    try:
        second = second.normalised(result(first, inventory))
    except PlanError as error:
        raise PlanError(f"the second plan does not fit what the first leaves: {error}") from error
    remaining = iter(second.layers)
    layers = [layer if layer.drop == "block" else _merge(layer, next(remaining)) for layer in first.layers]
    return Plan.of(inventory, layers)


def _merge(first: LayerPlan, second: LayerPlan) -> LayerPlan:
    """Return the two decisions on one surviving decoder layer as one."""
    if second.drop != "none":
        return second
    if first.drop == "moe":
        return first
    if second.experts is None:
        experts = first.experts
    elif first.experts is None:
        experts = second.experts
    else:
        experts = tuple(first.experts[index] for index in second.experts)
    top_k = second.top_k or first.top_k
    if top_k is not None and experts is not None:
        top_k = min(top_k, len(experts))
    return LayerPlan(experts=experts, top_k=top_k)
