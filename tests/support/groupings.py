"""Random plans that group experts, for models of 8 experts a layer."""

from __future__ import annotations

import numpy as np

from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats

Kind = tuple[str, str, int]
"""Router rule, merge kernel, constants."""

MIXES: dict[str, tuple[Kind, Kind, Kind]] = {
    "slice mean": (("map", "mean", 0), ("slice", "mean", 0), ("mean", "mean", 0)),
    "map": (("mean", "svd", 0), ("map", "mean", 0), ("map", "svd", 0)),
    "constants": (("map", "svd", 1), ("map", "mean", 2), ("map", "aligned", 1)),
    "aligned": (("slice", "mean", 0), ("mean", "aligned", 0), ("slice", "svd", 0)),
}
"""What becomes of the three layers of a tiny model (the first is dense in some families)."""


def grouping(inventory: Inventory, mix: str, seed: int) -> Plan:
    """Return a random plan: members, weights, centres and experts that go are drawn from ``seed``."""
    rng = np.random.default_rng(seed)
    layers = []
    for layer, (router, kernel, constants) in zip(inventory.layers, MIXES[mix], strict=True):
        if layer.mlp != "moe":
            layers.append(LayerPlan())
            continue
        layers.append(_layer(layer.experts, inventory.router.groups, rng, router, kernel, constants))
    return Plan.of(inventory, layers)


def _layer(experts: int, groups: int, rng: np.random.Generator, router: str, kernel: str, constants: int) -> LayerPlan:
    if router == "map":
        stays = sorted(rng.choice(experts, rng.integers(2, 5), replace=False).tolist())
    else:  # routers with groups need equally many rows in each
        size = experts // groups
        each = 2 if groups > 1 else int(rng.integers(3, 5))
        stays = sorted(int(g * size + e) for g in range(groups) for e in rng.choice(size, each, replace=False))
    rest = [expert for expert in range(experts) if expert not in stays]
    rng.shuffle(rest)
    replaced, rest = sorted(rest[:constants]), rest[constants:]
    lost = rest.pop() if router != "map" else None
    assert lost not in stays
    members: dict[int, list[int]] = {}
    for expert in rest:
        members.setdefault(int(rng.choice(stays)), []).append(expert)
    merges = []
    for into, others in sorted(members.items()):
        everyone = tuple(sorted([into, *others]))
        weights = tuple(rng.uniform(0.2, 1.0, len(everyone)).tolist())
        rank = int(rng.integers(3, 30)) if kernel == "svd" else None
        merges.append(Merge(into=into, members=everyone, weights=weights, kernel=kernel, rank=rank))
    return LayerPlan(experts=tuple(stays), merges=tuple(merges), constants=tuple(replaced), router=router)


def moments_of(inventory: Inventory, seed: int = 0) -> Stats:
    """Return random mean outputs of every expert."""
    rng = np.random.default_rng(seed)
    values = [
        rng.normal(size=(layer.experts, inventory.hidden)) if layer.mlp == "moe" else None for layer in inventory.layers
    ]
    return Stats({"routed_output_mean": tuple(values)})
