"""Limits on the size of every trial's result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Literal, Protocol, TypeAlias

from pydantic import Field

from bench.settings.strict import Strict
from methods.framework.cost import cost
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.method import Method
from methods.framework.plan import Plan
from sweeps.latency import MICROSECONDS, Timed
from sweeps.space.levels import LevelSpace
from sweeps.space.menu import Menu

Quantity: TypeAlias = Literal[
    "experts", "channels", "routed_parameters", "parameters", "active_parameters", "bytes", "flops"
]
"""A size of ``methods.framework.cost.Cost``."""


WORK = frozenset({"active_parameters", "flops"})
"""Sizes that fall where a token is routed to fewer experts, though all are stored."""


class Times(Protocol):
    """Measured times of the layers of one model."""

    @property
    def source(self) -> Mapping[str, int]:
        """Microseconds of the uncompressed model, by quantity."""
        ...

    def added(self, menu: Menu) -> LevelSpace:
        """Return the space of a menu with microseconds beside its other sizes."""
        ...


class Budget(Strict):
    """A limit on the size of every trial's result."""

    of: Quantity | Timed = Field(description="what is limited: a size, or a measured time (see latency)")
    keep: float = Field(gt=0.0, le=1.0, description="largest share of the source's that remains")
    how: Literal["project", "refuse"] = Field(
        default="project",
        description="project: shift each draw onto the limit, within one unit; refuse: refuse larger draws",
    )

    @property
    def quantity(self) -> str:
        """The name under which sizes and tables count it."""
        return MICROSECONDS.get(self.of, self.of)


def budget_misfit(budgets: Sequence[Budget], kinds: Sequence[type[Method]]) -> str | None:
    """Return why no trial of these steps could meet a limit, or None.

    Args:
        budgets: the limits.
        kinds: classes of the steps.
    """
    if any(kind.stores_less for kind in kinds):
        return None
    if budgets and all(kind.stages == {"sparsity"} for kind in kinds):
        return "zeros are stored like other weights, so no size falls with them; leave the budget out"
    for budget in budgets:
        if budget.of not in WORK and budget.of not in MICROSECONDS:
            names = " + ".join(kind.name for kind in kinds)
            return f"{names} stores what the source stores, so {budget.of} does not fall; limit {' or '.join(sorted(WORK))}"
    return None


class Limits:
    """The sizes of plans of one model, and the budgets that they must meet together."""

    def __init__(self, inventory: Inventory, budgets: Sequence[Budget], times: Times | None = None) -> None:
        """Count the source and the absolute limits; of several for one quantity the least counts.

        Args:
            inventory: of the source.
            budgets: shares of what the source has.
            times: measured times; None: only what can be counted has sizes.
        """
        self.inventory, self.budgets, self.times = inventory, tuple(budgets), times
        self._sizes: dict[str, dict[str, int]] = {}
        self.source = self.sizes(Plan.identity(inventory)) | dict({} if times is None else times.source)
        self.limits: dict[str, float] = {}
        for budget in budgets:
            name = budget.quantity
            limit = budget.keep * self.source[name]
            self.limits[name] = min(limit, self.limits.get(name, limit))

    def space(self, menu: Menu) -> LevelSpace:
        """Return the assignments of a menu with their limits, and with measured times where there are any."""
        space = menu.space if self.times is None else self.times.added(menu)
        return replace(space, limits=dict(self.limits))

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
