"""Limits on the size of every trial's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Literal, TypeAlias

from pydantic import Field

from bench.settings.strict import Strict
from methods.framework.cost import cost
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan

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
        description="project: shift each draw onto the limit, within one unit; refuse: refuse larger draws",
    )


class Limits:
    """The sizes of plans of one model, and the budgets that they must meet together."""

    def __init__(self, inventory: Inventory, budgets: Sequence[Budget]) -> None:
        """Count the source and the absolute limits; of several for one quantity the least counts."""
        self.inventory, self.budgets = inventory, tuple(budgets)
        self._sizes: dict[str, dict[str, int]] = {}
        self.source = self.sizes(Plan.identity(inventory))
        self.limits: dict[str, float] = {}
        for budget in budgets:
            limit = budget.keep * self.source[budget.of]
            self.limits[budget.of] = min(limit, self.limits.get(budget.of, limit))

    @property
    def projecting(self) -> bool:
        """Whether draws are brought onto the limits; else larger ones are refused."""
        return bool(self.budgets) and all(budget.how == "project" for budget in self.budgets)

    def sizes(self, plan: Plan) -> dict[str, int]:
        """Return the cost by name, counted once for each plan."""
        if plan.digest not in self._sizes:
            self._sizes[plan.digest] = asdict(cost(plan, self.inventory))
        return self._sizes[plan.digest]

    def excess(self, sizes: Mapping[str, float]) -> float:
        """Return by which share of its limit the worst quantity is above it; 0 or less where all limits are met."""
        return max(((sizes[name] - limit) / limit for name, limit in self.limits.items()), default=-1.0)

    def check(self, sizes: Mapping[str, float]) -> None:
        """Refuse what is above a limit.

        Raises:
            RefusedError: with the quantity and its share of the source's.
        """
        for name, limit in self.limits.items():
            if sizes[name] > limit:
                source = self.source[name]
                raise RefusedError(
                    f"{name} of the result is {sizes[name] / source:.4g} of the source's, above the budget of "
                    f"{limit / source:.4g}"
                )

    def __str__(self) -> str:
        """Return the budgets for people, such as ``0.5 of the source's bytes``."""
        return " and ".join(
            f"{limit / self.source[name]:.3g} of the source's {name}" for name, limit in self.limits.items()
        )
