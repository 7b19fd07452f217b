"""Block Drop of the holistic study: remove whole decoder layers."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import removed_count, top
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.plan import without_attention
from methods.framework.stats import Stats


class BlockDrop(Method):
    """Drop the decoder layers whose output is most similar to their input.

    ``discrete``: S_l = mean over tokens of cos(h_l, h_{l+1}); the n largest go, wherever they are. ``consecutive``: the n
    successive layers l .. l+n-1 with the largest cos(h_l, h_{l+n}) go. ``keep`` is the share of decoder layers.

    *Source*: arXiv 2406.02500, section 3.2 (Block Drop).

    *Differs*: the official consecutive variant reads the column of the wrong gap, n + 1 layers instead of n, and never
    considers the last start; here the gap is n and every start is considered.
    """

    name: ClassVar[str] = "block_drop"
    title: ClassVar[str] = "Block Drop"
    source: ClassVar[str] = "arXiv 2406.02500, section 3.2"
    stages: ClassVar[frozenset[str]] = frozenset({"blocks"})

    keep: float = Field(default=0.75, gt=0.0, le=1.0, description="share of decoder layers that remain")
    variant: Literal["discrete", "consecutive"] = "discrete"
    """Whether single layers go, wherever they are, or successive ones."""

    @property
    def needs(self) -> frozenset[str]:
        """The cosine over one layer, or those over any number of layers."""
        return frozenset({"block_cosine" if self.variant == "discrete" else "hidden_cosine"})

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse models whose config cannot state that a decoder layer is gone."""
        if inventory.whole_depth is not None and removed_count(self.keep, len(inventory.layers)):
            return f"decoder layers of this model cannot be dropped: {inventory.whole_depth}"
        return super().refuse(inventory)

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Drop the most similar layers; ties drop the earlier one."""
        layers = len(inventory.layers)
        count = min(removed_count(self.keep, layers), layers - 1)
        if self.variant == "discrete":
            scores = np.array([float(stats.layer("block_cosine", index)) for index in range(layers)])
            dropped = set(top(scores, count))
        else:
            cosine = stats.model("hidden_cosine")
            spans = np.array([cosine[start, start + count] for start in range(layers - count + 1)])
            start = int(np.argmax(spans))
            dropped = set(range(start, start + count))
        if reason := without_attention(sorted(dropped), inventory):
            raise RefusedError(f"{self.name}: {reason}; set a larger keep, or the other variant")
        return [LayerPlan(drop="block" if index in dropped else "none") for index in range(layers)]
