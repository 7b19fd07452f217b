"""Tables and problems of additive damages, and their solutions by trying every assignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import numpy as np

from methods.framework.cost import cost
from methods.framework.inside import LowRank
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from sweeps.solving.table import Option, Table, Unit
from tests.support.inventories import toy_inventory

Problem = tuple[list[np.ndarray], list[np.ndarray]]
QUANTITIES = ("experts", "parameters", "active_parameters", "bytes")


def small_problem(rng: np.random.Generator, ties: bool) -> Problem:
    """Return damages and sizes of a few units: with many ties, or without any."""
    options = rng.integers(1, 5, rng.integers(1, 6))
    if ties:
        return [rng.integers(-2, 4, n).astype(float) for n in options], [rng.integers(0, 6, n) for n in options]
    return [rng.normal(size=n) for n in options], [rng.integers(1, 10**11, n) for n in options]


def every(problem: Problem) -> list[tuple[float, int, tuple[int, ...]]]:
    """Return damage, size and levels of every assignment, ascending."""
    damages, sizes = problem
    found = []
    for levels in product(*(range(len(unit)) for unit in damages)):
        damage = sum(float(unit[level]) for unit, level in zip(damages, levels, strict=True))
        found.append((damage, total(sizes, levels), levels))
    return sorted(found)


def total(sizes: Sequence[Any], levels: Sequence[int]) -> int:
    return sum(int(unit[level]) for unit, level in zip(sizes, levels, strict=True))


def sizes_of(plan: Plan, inventory: Inventory) -> dict[str, int]:
    found = cost(plan, inventory)
    return {name: getattr(found, name) for name in QUANTITIES}


def expert_table(damages: Mapping[int, Sequence[float | None]] | None = None, **changed: Any) -> Table:
    """Return the table of experts kept (2, 3 or 4) in the two MoE layers of the toy model, with true sizes."""
    inventory = toy_inventory()
    whole = sizes_of(Plan.identity(inventory), inventory)
    damages = damages or {1: (4.0, 1.0, 0.0), 2: (2.0, 1.5, 0.0)}
    units = []
    for layer, own in damages.items():
        options = []
        for kept, damage in zip((2, 3, 4), own, strict=True):
            plan = LayerPlan() if kept == 4 else LayerPlan(experts=tuple(range(kept)))
            layers = [plan if index == layer else LayerPlan() for index in range(3)]
            alone = sizes_of(Plan.of(inventory, layers), inventory)
            # What the unit weighs counts from nothing: the rest is the model less both layers as they are.
            sizes = {name: whole[name] // 3 - whole[name] + alone[name] for name in QUANTITIES}
            options.append(Option(settings={"experts": kept}, plan=plan, sizes=sizes, damage=damage))
        units.append(Unit(name=f"layer {layer}", layer=layer, options=tuple(options)))
    fields = {
        "study": "toy study",
        "model": "toy",
        "content": "0" * 64,
        "family": "toy",
        "objective": "nll",
        "base": 2.5,
        "source": whole,
        "rest": {name: value - 2 * (value // 3) for name, value in whole.items()},
        "layers": (LayerPlan(),) * 3,
        "units": tuple(units),
    }
    return Table.model_validate({**fields, **changed})


def matrix_plan(column: int, ranks: Sequence[int], **changed: Any) -> LayerPlan:
    """Return the plan of one matrix of the experts: its column of the ranks, zeros beside."""
    rows = [tuple(rank if place == column else 0 for place in range(3)) for rank in ranks]
    return LayerPlan.model_validate({"rank": LowRank(ranks=tuple(rows)), **changed})
