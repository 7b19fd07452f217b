"""One plan of several steps, each of which plans for what the steps before it leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from methods.framework.compose import compose
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from methods.framework.transfer import result


def composed(
    steps: Iterable[tuple[int, Method]], inventory: Inventory, stats: Stats, probe: Callable[[], Probe] | None
) -> Plan:
    """Return the composed plan; later steps read the source's statistics, sliced to what earlier ones leave.

    Args:
        steps: number, from 0, and method of each.
        inventory: of the source.
        stats: of the source.
        probe: makes the probe, for a first step that runs the model.

    Raises:
        RefusedError: a method refuses, or one that runs the model is not the first.
        PlanError: one plan cannot state what the steps do.
    """
    plan = Plan.identity(inventory)
    for number, method in steps:
        if method.probing and number > 0:
            raise RefusedError(f"step {number + 1}, {method.name}, runs the model, which only the first step can")
        own = method.plan(
            result(plan, inventory),
            stats.restricted(plan) if plan.stages else stats,
            probe() if method.probing and probe is not None else None,
        )
        plan = compose(plan, own, inventory) if plan.stages else own
    return plan
