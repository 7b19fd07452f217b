"""MoNE: replace the experts whose output varies least by their mean output."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import expert_counts, overall_count, top, top_overall
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import GATE_POWERS, Array, Stats


class MoNE(Method):
    """Keep the experts with the largest |sqrt(Var f_j)|_2 times mean gate weight; the others become a constant vector.

    The constant is the expert's mean output over its tokens. The router stays as it is, so a token that chooses a replaced
    expert still receives its weight times the constant. ``keep`` is the share of experts that stay; it may be less than
    the router's top-k.

    *Source*: arXiv 2507.00390 (expert access frequency and output variance) and its official code (``fusion``).

    *Differs*: the variance is the unbiased one over all routed tokens, as in the paper; the official code leaves out the
    first batch and measures from a running mean. The gate weights are averaged over all tokens, there over sequences, which
    ranks alike. Its threshold is strict, so that ties replace more experts than asked for; here ties keep the earlier layer,
    then the lower index, and every layer keeps one expert.
    """

    name: ClassVar[str] = "mone"
    title: ClassVar[str] = "MoNE"
    source: ClassVar[str] = "arXiv 2507.00390"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    scope: Literal["layer", "model"] = Field(default="layer", description="rank within a layer, or over all of them")
    score: Literal["fusion", "variance", "routing"] = Field(
        default="fusion", description="the product, or one of its factors (the paper's ablation)"
    )

    @property
    def maps(self) -> bool:
        """Whether its plans let several router rows lead to one expert, or rows lead to constants: always."""
        return True

    @property
    def needs(self) -> frozenset[str]:
        """Variance of outputs, and the moments for gate weights and numbers of tokens."""
        return frozenset({"gate_norm_moment"} | ({"routed_output_variance"} if self.score != "routing" else set()))

    @property
    def moments(self) -> frozenset[str]:
        """The mean outputs, which become the constants."""
        return frozenset({"routed_output_mean"})

    def scores(self, stats: Stats, layer: int) -> Array:
        """Return the score of each expert of ``layer``, shape (E,); 0 for an expert without tokens."""
        moments = stats.layer("gate_norm_moment", layer)
        routing: Array = moments[:, GATE_POWERS.index(1), 0] / max(stats.tokens, 1)
        if self.score == "routing":
            return routing
        hits = moments[:, 0, 0]
        unbiased = hits / np.maximum(hits - 1.0, 1.0)
        spread: Array = np.sqrt(stats.layer("routed_output_variance", layer).sum(axis=1) * unbiased)
        return spread * routing if self.score == "fusion" else spread

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Keep the top scorers of each layer, or of all layers; the others become constants."""
        scores = {layer: self.scores(stats, layer) for layer in inventory.moe_layers}
        if self.scope == "layer":
            counts = expert_counts(inventory, self.keep, mapped=True)
            kept = {layer: top(scores[layer], counts[layer]) for layer in counts}
        else:
            kept = top_overall(scores, overall_count(inventory, self.keep))
        return [
            self._replaced(kept[layer], inventory.layers[layer].experts) if layer in kept else LayerPlan()
            for layer in range(len(inventory.layers))
        ]

    def _replaced(self, kept: tuple[int, ...], experts: int) -> LayerPlan:
        constants = tuple(expert for expert in range(experts) if expert not in set(kept))
        return LayerPlan(experts=kept, constants=constants, router="map" if constants else "slice")
