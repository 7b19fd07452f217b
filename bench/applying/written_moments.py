"""The moments that a plan writes as a whole: whether they are there, their digest, and experts that saw no token."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from bench.applying.moments import (
    CONSTANT_STATISTIC,
    TOKENS,
    check_finite,
    check_presence,
    constants,
    statistic_of,
    unmapped,
    used_experts,
)
from methods.framework.inside_fit import stays
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.stats import CATALOGUE, Array, Stats


def cold_experts(plan: Plan, inventory: Inventory, moments: Stats | None) -> int:
    """Return how many experts that stay saw no token, though ``plan`` makes them from moments of their inputs.

    They are made from their weights alone. The moments of an expert without tokens are all zero.

    Args:
        plan: what becomes of each layer.
        inventory: the source, in whose coordinates the plan is stated.
        moments: measured statistics; None is allowed where the plan needs no moments of experts.

    Raises:
        StatsError: as ``constants``.
    """
    count = 0
    for index, layer in enumerate(plan.layers):
        names = [name for name in _of_layer(layer, inventory, index) if CATALOGUE[name].dims[0] == "E"]
        if not names:
            continue
        name = names[0]
        if TOKENS in names:
            name = TOKENS
        values = statistic_of(moments, inventory, name, index)
        merged = {merge.into: merge.members for merge in layer.merges}
        for expert in stays(layer, inventory.layers[index]):
            count += not any(np.any(values[member]) for member in merged.get(expert, (expert,)))
    return count


def check_moments(plan: Plan, inventory: Inventory, moments: Stats | None) -> None:
    """Check that the statistics named in ``plan.moments`` are at hand, fit the model, and are finite where that is quick.

    Args:
        plan: states the statistics that its values depend on.
        inventory: the source, in whose coordinates the plan is stated.
        moments: measured statistics; None is allowed where the plan needs none.

    Raises:
        StatsError: as ``constants``. Of values that lie in files only the shape is looked at here.
    """
    check_presence(plan.moments, moments)
    for index, layer in enumerate(plan.layers):
        for _ in _pieces(layer, index, inventory, moments, big=False):
            pass


def moments_digest(plan: Plan, inventory: Inventory, moments: Stats | None) -> str | None:
    """Return the SHA-256 of the measured values that ``plan`` writes into its checkpoint; None where it writes none.

    Values of experts that the plan does not use are left out; of those that lie in files one is in memory at a time.

    Args:
        plan: in the coordinates of ``inventory``.
        inventory: the source.
        moments: statistics of the source.

    Raises:
        StatsError: as ``constants``.
    """
    if not plan.moments:
        return None
    check_presence(plan.moments, moments)
    digest = MomentsDigest(plan, inventory)
    for index in range(len(plan.layers)):
        digest.add(index, moments)
    return digest.hexdigest()


class MomentsDigest:
    """``moments_digest``, layer by layer in their order."""

    def __init__(self, plan: Plan, inventory: Inventory) -> None:
        """Begin with nothing; ``plan`` is in the coordinates of ``inventory``."""
        self._plan, self._inventory, self._hasher = plan, inventory, hashlib.sha256()

    def add(self, index: int, moments: Stats | None) -> None:
        """Add what the plan uses of the next layer, ``index``; of values that lie in files one is in memory at a time.

        Raises:
            StatsError: as ``constants``.
        """
        for label, values in _pieces(self._plan.layers[index], index, self._inventory, moments, big=True):
            self._hasher.update(label.encode())
            self._hasher.update(values)

    def hexdigest(self) -> str:
        """Return the digest of the layers so far."""
        return self._hasher.hexdigest()


def _pieces(
    layer: LayerPlan, index: int, inventory: Inventory, moments: Stats | None, big: bool
) -> Iterator[tuple[str, memoryview]]:
    """Yield a label and the bytes of all values that a layer's plan uses, checked, with or without those that lie in files."""
    if layer.constants:
        values_CD = constants(moments, inventory, index, layer.constants)
        yield f"{index} {layer.constants} {values_CD.shape}", _bytes(values_CD, "<f8")
    if layer.bits is not None and layer.bits.scope == "all" and layer.bits.kernel == "awq":
        assert moments is not None  # their presence was checked
        yield f"{index} tokens {moments.tokens}", memoryview(b"")
    for name in _of_layer(layer, inventory, index):
        values = statistic_of(moments, inventory, name, index)
        is_big = CATALOGUE[name].on_disk
        if CATALOGUE[name].dims[0] != "E":
            if big or not is_big:
                check_finite(values, name, index)
                yield f"{index} {name} {values.shape}", _bytes(values, "<f4" if is_big else "<f8")
                unmapped(values)
            continue
        for expert in used_experts(layer, inventory.layers[index].experts):
            if is_big and not big:
                continue
            check_finite(values[expert], name, index)
            label = f"{index} {name} {expert} {values.shape[1:]}"
            yield label, _bytes(values[expert], "<f4" if is_big else "<f8")
            unmapped(values)


def _of_layer(plan: LayerPlan, inventory: Inventory, index: int) -> list[str]:
    """Return the statistics whose values go into a layer, as far as they are defined there, without those of constants."""
    layer = inventory.layers[index]
    return sorted(n for n in plan.moments - {CONSTANT_STATISTIC} if CATALOGUE[n].defined_in(layer))


def _bytes(values: Array, dtype: str) -> memoryview:
    return np.ascontiguousarray(values, dtype=dtype).view(np.uint8).data
