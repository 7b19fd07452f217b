"""The models on which laws are tried: a tiny architecture of each family, with statistics drawn from a seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

from bench.families.family import family_named
from bench.models.tiny import FAMILIES, tiny_config
from methods.framework.inventory import Inventory
from methods.framework.linears import sizes as inputs_of
from methods.framework.stats import CATALOGUE, Array, Stats, StatSpec

SAMPLED_TOKENS = 48
"""Tokens of the synthetic statistics that are kept token by token."""


@dataclass(frozen=True, eq=False)
class Case:
    """One tiny architecture with synthetic statistics for everything in the catalogue."""

    family: str
    inventory: Inventory
    stats: Stats


@cache
def case(family: str, seed: int = 0, experts: int = 16) -> Case:
    """Return the case of ``family``: by default 16 experts a layer, so that keeps differ, and 5 layers.

    Args:
        family: name of an architecture.
        seed: of the synthetic statistics.
        experts: routed experts of each layer.
    """
    known = family_named(family)
    keys = known.file.keys
    config = tiny_config(family, **{keys.layers: 5, keys.experts[0]: experts}).to_dict()
    inventory = known.inventory(config)
    return Case(family, inventory, synthetic_stats(inventory, seed))


def cases() -> list[Case]:
    """Return the cases of all families."""
    return [case(family) for family in FAMILIES]


def synthetic_stats(inventory: Inventory, seed: int) -> Stats:
    """Return positive random values of the right shape for every statistic; no two experts tie."""
    # Each has a generator of its own, so that a new statistic leaves the values of the others as they are.
    drawn = {
        name: _values(spec, inventory, np.random.default_rng([seed, *name.encode()]))
        for name, spec in CATALOGUE.items()
    }
    return Stats(drawn, tokens=1000)


def _width(inventory: Inventory) -> int:
    """Return the width of the routed experts."""
    return next(entry.shape[0] for layer in inventory.layers for entry in layer.with_role("expert.gate"))


def _values(spec: StatSpec, inventory: Inventory, rng: np.random.Generator) -> tuple[Array | None, ...]:
    sizes = {"A": 3, "N": 3, "M": 3, "B": len(inventory.layers) + 1, "D": inventory.hidden, "S": SAMPLED_TOKENS}
    sizes["F"] = _width(inventory)
    sizes["R"] = min(inventory.hidden, sizes["F"])
    if spec.scope == "model":
        return (rng.uniform(0.1, 1.0, [sizes[dim] for dim in spec.dims]),)
    values: list[Array | None] = []
    for layer in inventory.layers:
        if not spec.defined_in(layer):
            values.append(None)
            continue
        sizes |= dict(zip("PQ", inputs_of(layer, "attention"), strict=True))
        sizes |= dict(zip("UV", inputs_of(layer, "network"), strict=True))
        shape = [layer.experts if dim == "E" else sizes[dim] for dim in spec.dims]
        value = np.asarray(rng.uniform(0.1, 1.0, shape))
        if spec.dims[-2:] == (
            "E",
            "E",
        ):  # inner products and similarities: symmetric, none negative, 1 or more on the diagonal
            value = value @ value.swapaxes(-1, -2)
            if spec.unit == "1":
                scale = np.sqrt(np.diagonal(value, axis1=-2, axis2=-1))
                value = value / scale[..., :, None] / scale[..., None, :]
        elif spec.name == "token_logits":
            value = rng.normal(0.0, 2.0, shape)
        elif spec.dims[-1:] == ("R",):  # spectra are descending
            value = -np.sort(-value, axis=-1)
        values.append(value)
    return tuple(values)
