"""Layer Drop of the holistic study: remove whole MoE sub-layers with the norm before them."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import removed_count, top
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import Stats


class LayerDrop(Method):
    """Drop the MoE sub-layers whose output is most similar to their input; attention stays.

    S_l = mean over tokens of cos(x, x + MoE(norm(x))) with ``similarity='residual'``, the paper's choice; the ablation
    ``'module'`` takes cos(h, MoE(h)) on the MoE's own input and output. ``keep`` is the share of MoE sub-layers; of a model
    without experts, that of its dense sub-layers, as the paper does for comparison.

    *Source*: arXiv 2406.02500, section 3.2 (Layer Drop), S^(NM) and S^(M).
    """

    name: ClassVar[str] = "layer_drop"
    title: ClassVar[str] = "Layer Drop"
    source: ClassVar[str] = "arXiv 2406.02500, section 3.2"
    stages: ClassVar[frozenset[str]] = frozenset({"sublayers"})

    keep: float = Field(default=0.75, gt=0.0, le=1.0, description="share of MoE sub-layers that remain")
    similarity: Literal["residual", "module"] = "residual"
    """What is compared with the sub-layer's output: the residual stream before and after it, or its own input."""

    @property
    def needs(self) -> frozenset[str]:
        """The one cosine that is compared."""
        return frozenset({"moe_residual_cosine" if self.similarity == "residual" else "moe_io_cosine"})

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Drop the most similar sub-layers; ties drop the earlier one."""
        (need,) = self.needs
        layers = inventory.droppable_layers
        scores = np.array([float(stats.layer(need, index)) for index in layers])
        dropped = {layers[i] for i in top(scores, removed_count(self.keep, len(layers)))}
        return [LayerPlan(drop="moe" if index in dropped else "none") for index in range(len(inventory.layers))]
