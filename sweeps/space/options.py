"""The values that a layer may choose among."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from methods.framework.inventory import Inventory
from methods.framework.knob_space import Choice, space_of
from methods.framework.method import Method
from sweeps.space.dimension import Layers


def options(kind: type[Method], knob: str, dimension: Layers, inventory: Inventory) -> tuple[Any, ...]:
    """Return the options of one knob for every layer.

    Args:
        kind: the method.
        knob: its name.
        dimension: what the user allows.
        inventory: the model, which says how many experts a layer has.
    """
    if dimension.choices is not None:
        return dimension.choices
    own = space_of(kind).get(knob)
    if knob == "keep" and isinstance(own, Choice):
        return tuple(share for share in own.values if dimension.low <= share <= dimension.high)
    if knob == "keep" and kind.stages == {"experts"}:
        return _counts(dimension, inventory)
    shares = np.linspace(dimension.low, dimension.high, dimension.levels)
    return tuple(round(float(share), 6) for share in shares)


def _counts(dimension: Layers, inventory: Inventory) -> tuple[float, ...]:
    """Return the shares that are whole numbers of experts, in steps that keep them to ``dimension.levels``."""
    experts = max(inventory.layers[layer].experts for layer in inventory.moe_layers)
    unit = inventory.router.groups
    lowest = max(unit, math.ceil(dimension.low * experts / unit) * unit)
    highest = math.floor(dimension.high * experts / unit) * unit
    step = unit * math.ceil(((highest - lowest) // unit + 1) / dimension.levels)
    counts = range(highest, lowest - 1, -step)
    return tuple(count / experts for count in reversed(counts))
