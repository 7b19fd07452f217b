"""Data-free expert pruning by the norm of the weights."""

from __future__ import annotations

from typing import ClassVar

from methods.framework.allocation import expert_counts, top
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Stats


class WeightNorm(LayerwiseMethod):
    """Keep the experts with the largest Frobenius norm over their three matrices, S_j^2 = |W_g|^2 + |W_u|^2 + |W_d|^2.

    *Source*: magnitude baseline of expert pruning, listed by MC-Suite (arXiv 2504.05586).
    """

    name: ClassVar[str] = "weight_norm"
    title: ClassVar[str] = "Weight norm"
    source: ClassVar[str] = "arXiv 2504.05586"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    @property
    def needs(self) -> frozenset[str]:
        """Squared norms of the experts' matrices; no tokens."""
        return frozenset({"weight_norm"})

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Rank by the squared norm, which orders as the norm does."""
        scores = stats.layer("weight_norm", layer).sum(axis=1)
        count = expert_counts(inventory, self.keep)[layer]
        return LayerPlan(experts=top(scores, count, inventory.router.groups))
