"""Keep every trial inside a budget by shifting its ``keep``, so that the search compares results of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import asdict
from typing import Any, Literal, TypeAlias

from pydantic import Field

from bench.settings.strict import Strict
from methods.framework.cost import cost
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import Stats

_HALVINGS = 24
"""Bisection steps: shares are found to 2^-24, finer than one expert of any model."""


Quantity: TypeAlias = Literal[
    "experts", "channels", "routed_parameters", "parameters", "active_parameters", "bytes", "flops"
]
"""A size of ``methods.framework.cost.Cost``."""


class Budget(Strict):
    """A limit on the size of every trial's result."""

    of: Quantity = Field(description="what is limited")
    keep: float = Field(gt=0.0, le=1.0, description="largest share of the source's that remains")
    how: Literal["project", "refuse"] = Field(
        default="project",
        description="project: shift `keep` of each draw onto the limit, within one unit; refuse: refuse larger draws",
    )


class Planner:
    """Plans of one method for one model, with the configured budget."""

    def __init__(
        self,
        method_class: type[Method],
        inventory: Inventory,
        stats: Stats,
        budget: Budget | None,
        probe: Callable[[], Probe] | None = None,
    ) -> None:
        """Count the source and the absolute limit.

        Args:
            method_class: the method.
            inventory: of the source.
            stats: of the source.
            budget: limit on the result, None for none.
            probe: makes the probe, for methods that run the model.
        """
        self.method_class, self.inventory, self.stats, self.budget = method_class, inventory, stats, budget
        self._probe = probe
        self._costs: dict[tuple[object, ...], dict[str, int]] = {}
        self.source = self.cost(Plan.identity(inventory))
        self.limit = None if budget is None else budget.keep * self.source[budget.of]

    def cost(self, plan: Plan) -> dict[str, int]:
        """Return the cost by name, counted once for all plans that must have the same.

        Where experts stay whole it depends on their numbers alone; a layer whose experts change inside counts as it is stated.
        """
        shape = tuple(
            p if p.inside else (p.drop, _count(p.experts), _count(p.rows), len(p.constants), p.top_k)
            for p in plan.layers
        )
        if shape not in self._costs:
            self._costs[shape] = asdict(cost(plan, self.inventory))
        return self._costs[shape]

    def excess(self, plan: Plan) -> float:
        """Return by how much the plan is above the limit, in the limit's unit; 0 or less when it is met."""
        return -1.0 if self.budget is None or self.limit is None else self.cost(plan)[self.budget.of] - self.limit

    def plan(self, knobs: Mapping[str, Any]) -> tuple[Method, Plan]:
        """Return the method as used, and its plan; with ``how: project`` the one on the budget.

        Raises:
            RefusedError: the method does not plan with these knobs, or no shift of ``keep`` meets the budget.
            ConfigError: the knobs do not go together.
        """
        method = self.method_class.configured(knobs)
        if self.budget is None or self.budget.how == "refuse":
            return method, self._planned(method)
        return self._projected(method)

    def _planned(self, method: Method) -> Plan:
        probe = self._probe() if method.probing and self._probe is not None else None
        return method.plan(self.inventory, self.stats, probe)

    def _projected(self, method: Method) -> tuple[Method, Plan]:
        """Return the largest shift of ``keep`` whose plan meets the limit.

        Each share s becomes min(1, max(floor, s + shift)), the floor being what the routers need; cost grows with the
        shift, hence bisection. A shift at which the method refuses counts as too small.
        """
        assert self.budget is not None
        low, high = -1.0, 1.0
        fits, best, reason = self._try(method, high)
        if fits:
            assert best is not None
            return best
        fits, best, reason = self._try(method, low)
        for _ in range(_HALVINGS if fits is not False else 0):
            middle = (low + high) / 2
            fits, found, why = self._try(method, middle)
            if fits is False:
                high = middle
            else:
                low, best, reason = middle, found or best, why or reason
        if best is None or self.excess(best[1]) > 0:
            raise RefusedError(
                f"method {method.name} cannot be brought to {self.budget.keep:.3g} of the source's {self.budget.of}"
                f"{f' ({reason})' if reason else ''}; allow a larger budget"
            )
        return best

    def _try(self, method: Method, shift: float) -> tuple[bool | None, tuple[Method, Plan] | None, str]:
        """Return whether the shifted method meets the limit (None: it refuses), the plan, and the refusal."""
        keep = method.keep
        shares = (keep,) if isinstance(keep, (int, float)) else keep
        floor = self._floor(method)
        moved = tuple(min(1.0, max(floor, share + shift)) for share in shares)
        shifted = method.model_copy(update={"keep": moved[0] if isinstance(keep, (int, float)) else moved})
        try:
            plan = self._planned(shifted)
        except RefusedError as error:
            return None, None, str(error)
        return self.excess(plan) <= 0, (shifted, plan), ""

    def _floor(self, method: Method) -> float:
        """Return the smallest share of a layer: the experts that its router needs; or one layer, where layers are dropped."""
        if "experts" not in method.stages:
            return 1.0 / len(self.inventory.layers)
        layers = [self.inventory.layers[index] for index in self.inventory.moe_layers]
        return max(self.inventory.router.fewest_experts(layer.top_k) / layer.experts for layer in layers)


def _count(values: Sized | None) -> int | None:
    return None if values is None else len(values)
