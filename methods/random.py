"""Random expert pruning: the floor that every criterion has to beat."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from pydantic import Field

from methods.framework.allocation import expert_counts, top
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Stats


class Random(LayerwiseMethod):
    """Keep experts drawn uniformly at random in each layer.

    *Source*: the usual control (for example arXiv 2402.14800, section 4). Use at least three seeds.
    """

    name: ClassVar[str] = "random"
    title: ClassVar[str] = "Random"
    source: ClassVar[str] = "control"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})
    equivariant: ClassVar[bool] = False

    seed: int = Field(default=0, ge=0, description="seed of the draw; each layer has a stream of its own")

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Keep the experts with the largest of E uniform draws, so that a smaller ``keep`` keeps a subset."""
        draws = np.random.default_rng([self.seed, layer]).random(inventory.layers[layer].experts)
        count = expert_counts(inventory, self.keep)[layer]
        return LayerPlan(experts=top(draws, count, inventory.router.groups))
