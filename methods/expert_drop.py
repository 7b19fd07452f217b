"""Expert Drop of the holistic study: drop the experts to which the router gives the least weight."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import expert_counts, largest_remainder, top
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import GATE_POWERS, Array, Stats


class ExpertDrop(Method):
    """Drop experts by the mean router score S_j = mean over tokens of G_j(x), within each layer or over all of them.

    *Source*: arXiv 2406.02500, section 3.2 (Expert Drop); its official code for the two meanings of G.

    *Differs*: the official code lets a global drop empty a layer; here each layer keeps ``min_experts``. The experts of a
    layer are scored on the original hidden states, as there.
    """

    name: ClassVar[str] = "expert_drop"
    title: ClassVar[str] = "Expert Drop"
    source: ClassVar[str] = "arXiv 2406.02500, section 3.2"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    scope: Literal["layerwise", "global"] = Field(default="layerwise", description="rank within a layer, or over all")
    score: Literal["full", "chosen"] = Field(
        default="full",
        description="G_j: the router's score over all experts (official code on Mixtral and Qwen), "
        "or the weight after top-k (on DeepSeek)",
    )
    min_experts: int | None = Field(default=None, ge=1, description="global: experts each layer keeps; None: its top-k")

    @property
    def needs(self) -> frozenset[str]:
        """Full router scores, or the sum of chosen weights from the moment grid."""
        return frozenset({"router_probability" if self.score == "full" else "gate_norm_moment"})

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse a global ranking where the router needs the same number of experts in each group."""
        if self.scope == "global" and inventory.router.groups > 1:
            return f"scope='global' cannot keep the {inventory.router.groups} groups of this router equal in size"
        return super().refuse(inventory)

    def scores(self, stats: Stats, layer: int) -> Array:
        """Return the summed score of each expert of ``layer``, shape (E,), in tokens."""
        if self.score == "full":
            return stats.layer("router_probability", layer)
        return stats.layer("gate_norm_moment", layer)[:, GATE_POWERS.index(1), 0]

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Rank within each layer, or over all MoE layers at once."""
        layerwise = self.scope == "layerwise"
        counts = expert_counts(inventory, self.keep) if layerwise else self._global_counts(inventory, stats)
        return [
            LayerPlan(experts=top(self.scores(stats, index), counts[index], inventory.router.groups))
            if index in counts
            else LayerPlan()
            for index in range(len(inventory.layers))
        ]

    def _global_counts(self, inventory: Inventory, stats: Stats) -> dict[int, int]:
        """Return how many experts stay in each layer when the smallest scores of the whole model go first."""
        if not isinstance(self.keep, float):
            raise RefusedError(
                "expert_drop: depth knots contradict scope='global', which finds the depth profile itself"
            )
        moe = inventory.moe_layers
        counts = {index: inventory.layers[index].experts for index in moe}
        floors = {index: min(self.min_experts or inventory.layers[index].top_k, counts[index]) for index in moe}
        budget = largest_remainder([(1.0 - self.keep) * sum(counts.values())])[0]
        if budget > sum(counts.values()) - sum(floors.values()):
            raise RefusedError(
                f"expert_drop: keep={self.keep} is less than min_experts allows; "
                f"the smallest is {sum(floors.values()) / sum(counts.values()):.3g}"
            )
        scores = {index: self.scores(stats, index) for index in moe}
        flat = np.concatenate([scores[index] for index in moe])
        owner = np.concatenate([np.full(len(scores[index]), index) for index in moe])
        expert = np.concatenate([np.arange(len(scores[index])) for index in moe])
        for position in np.lexsort((-expert, -owner, flat)):
            if budget == 0:
                break
            layer = int(owner[position])
            if counts[layer] > floors[layer]:
                counts[layer] -= 1
                budget -= 1
        return counts
