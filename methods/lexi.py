"""LExI: fewer experts for each token in the layers that miss them least."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import largest_remainder
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import ProbingMethod, Share
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from methods.kernels.least_sum import least_sum


class LExI(ProbingMethod):
    """Route each token to fewer experts, in layers whose output on random inputs changes least for that; no weight goes.

    The change of layer l at k experts per token is D_l(k) = ||routed output - routed output at k||_F, the weights of the
    chosen experts renormalised as the family does. The k_l minimise sum_l D_l(k_l) where sum_l k_l is ``keep`` of the
    model's. Stored size stays; parameters and operations per token go down.

    *Source*: arXiv 2509.02753, algorithms 1 and 2.

    *Differs*: the sum is minimised exactly by dynamic programming (there: by evolution). One draw of as many random inputs
    as the probe has tokens (there: an average over many). ``inputs='text'`` takes the states of the calibration text, which
    the paper does not. Random inputs enter the experts themselves, after the layer's norm.
    """

    name: ClassVar[str] = "lexi"
    title: ClassVar[str] = "LExI"
    source: ClassVar[str] = "arXiv 2509.02753, algorithms 1 and 2"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})
    stores_less: ClassVar[bool] = False

    keep: Share = Field(
        default=0.5, description="share of the experts per token, over all layers, that remains, in (0, 1]"
    )
    inputs: Literal["noise", "text"] = Field(
        default="noise", description="on which a layer's change is measured: standard normal, or states of the text"
    )
    min_top_k: int = Field(default=1, ge=1, description="least experts per token of a layer, where it has that many")

    @property
    def probing(self) -> bool:
        """True, except where everything is kept."""
        return self.keep != 1.0

    @classmethod
    def least_keep(cls, inventory: Inventory) -> float:
        """Return the share at which every layer has one expert per token."""
        return len(inventory.moe_layers) / sum(inventory.layers[index].top_k for index in inventory.moe_layers)

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse where the router cannot choose fewer, or the layers cannot spare as much."""
        if reason := super().refuse(inventory):
            return reason
        if self.keep == 1.0:
            return None
        if inventory.router.score == "sparsemixer":
            return "a sparsemixer router always takes two experts"
        have = [inventory.layers[index].top_k for index in inventory.moe_layers]
        least = sum(min(self.min_top_k, top_k) for top_k in have)
        if self._total(have) < least:
            return (
                f"keep={self.keep} leaves {self._total(have)} experts per token in {len(have)} layers, which keep at least "
                f"{least} together; the smallest keep is {least / sum(have):.3g}"
            )
        return None

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Keep everything: the one case that needs no probe."""
        return [LayerPlan() for _ in inventory.layers]

    def decide_by_probe(self, inventory: Inventory, stats: Stats, probe: Probe) -> list[LayerPlan]:
        """Measure each layer at every smaller number, and choose the numbers of least total change."""
        have = {index: inventory.layers[index].top_k for index in inventory.moe_layers}
        changes = []
        for layer, top_k in have.items():
            fewer = [LayerPlan(top_k=number) for number in range(1, top_k)]
            if not fewer:
                found = np.zeros(0)
            elif self.inputs == "noise":
                found = probe.noise_error(layer, fewer)
            else:
                found = probe.layer_error(layer, fewer, {})
            change = np.append(found, 0.0)
            change[: min(self.min_top_k, top_k) - 1] = np.inf
            changes.append(change)
        chosen = least_sum(changes, self._total(list(have.values())))
        if chosen is None:
            raise RefusedError(f"{self.name}: no numbers of experts per token add up to keep={self.keep}")
        made = {layer: LayerPlan(top_k=number) for layer, number in zip(have, chosen, strict=True)}
        return [made.get(index, LayerPlan()) for index in range(len(inventory.layers))]

    def _total(self, have: list[int]) -> int:
        """Return the experts per token that remain in all layers together."""
        return largest_remainder([self.keep * sum(have)])[0]
