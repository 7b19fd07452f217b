"""What each method would need of a model, from shapes alone: how the model has to run, and how much its statistics take."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass

from bench.calibration.conditions import Conditions
from bench.calibration.layers.weights import expert_width
from methods.framework.catalogue import CATALOGUE
from methods.framework.inventory import Inventory
from methods.framework.linears import sizes as linear_sizes
from methods.framework.method import Method
from methods.framework.stat_spec import GATE_POWERS, NORM_POWERS

RUNS = {
    "gradient": "the whole model in memory, forward and backward",
    "sampled": "one pass, every expert on sampled tokens",
    "routed": "one pass, chosen experts",
    "boundary": "one pass, chosen experts",
    "weights": "weights alone",
}
"""How a model has to run for statistics of a cost class, the dearest first."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What a method needs.

    Args:
        refusal: why it does not apply to the model; None where it does.
        runs: how the model has to run.
        stat_bytes: bytes of its statistics, in memory or on disk.
    """

    refusal: str | None
    runs: str
    stat_bytes: int


def demand(method: Method, inventory: Inventory, sampled: int | None = None) -> Demand:
    """Return what ``method`` needs of the model.

    Args:
        method: a configured method.
        inventory: the model; no weight of it need be there.
        sampled: tokens on which every expert runs; None for as many as by default.
    """
    if (reason := method.refuse(inventory)) is not None:
        return Demand(reason, "", 0)
    costs = {CATALOGUE[name].cost for name in method.measured}
    runs = [words for cost, words in RUNS.items() if cost in costs][:1]
    if method.probing:
        runs.append("candidates, layer by layer")
    tokens = Conditions("cpu", "float32").sampled_tokens if sampled is None else sampled
    return Demand(None, " and ".join(runs) or "nothing", stat_bytes(inventory, method.measured, tokens))


def stat_bytes(inventory: Inventory, needs: Collection[str], sampled: int) -> int:
    """Return the bytes of statistics: 8 for each value, 4 where they lie on disk.

    Args:
        inventory: the model.
        needs: names of statistics.
        sampled: tokens on which every expert runs, S.
    """
    depth, total = len(inventory.layers), 0
    sizes = {"A": len(GATE_POWERS), "N": len(NORM_POWERS), "M": 3, "B": depth + 1, "D": inventory.hidden, "S": sampled}
    for spec in (CATALOGUE[name] for name in needs):
        layers = range(1) if spec.scope == "model" else inventory.moe_layers if spec.scope == "moe" else range(depth)
        for index in layers:
            own, layer = dict(sizes), inventory.layers[index]
            if spec.scope == "attention":
                own["P"], own["Q"] = linear_sizes(layer, "attention")
            elif spec.scope == "network":
                own["U"], own["V"] = linear_sizes(layer, "network")
            elif spec.scope == "moe":
                own |= {"E": layer.experts, "F": expert_width(layer)}
                own["R"] = min(own["D"], own["F"])
            total += math.prod(own[letter] for letter in spec.dims) * (4 if spec.on_disk else 8)
    return total
