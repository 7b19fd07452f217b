"""M-SMoE: merge every expert into the often used one to which the router responds most alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import expert_counts, overall_count, top, top_overall
from methods.framework.grouping import merge_plan, usage_weights
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import Array, Stats
from methods.kernels.cosine import cosine


class MSMoE(Method):
    """Merge each expert into the dominant expert with the most similar router logits, weighted by usage.

    Usage of an expert is its share of the layer's routed tokens. Dominant are the most used expert of each layer and then
    the most used of all layers, until the budget is spent exactly. Every other expert joins the dominant expert of its
    layer with the largest (cos + 1) / 2 between their columns of router logits, vectors over all tokens. The hidden
    channels of the members are aligned to those of the dominant expert and the matrices averaged by usage; the router
    keeps its rows, several of which then lead to one expert.

    *Source*: arXiv 2310.01334 (M-SMoE) and its official code. The low-rank and sparse second half
    (MC-SMoE) and the distillation are other methods.

    *Differs*: the official code keeps experts whose usage is strictly above the one at the budget's end, so that ties lose
    groups; here exactly the budget stays, ties keep the earlier layer, then the lower index. It also stacks all router
    logits in memory, of which only the inner products count. A group that saw no token at all is averaged equally. The official
    code for Mixtral does not align channels before it averages, that for Switch does; here ``alignment`` is the same for every
    family and on by default, so what was published for Mixtral is ``alignment=false``.
    """

    name: ClassVar[str] = "m_smoe"
    title: ClassVar[str] = "M-SMoE"
    source: ClassVar[str] = "arXiv 2310.01334"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    scope: Literal["global", "layer"] = Field(
        default="global",
        description="dominant experts: the most used of all layers, or as many as asked for in each layer",
    )
    alignment: bool = Field(default=True, description="align hidden channels before averaging")

    @property
    def maps(self) -> bool:
        """Whether its plans let several router rows lead to one expert, or rows lead to constants: always."""
        return True

    @property
    def needs(self) -> frozenset[str]:
        """Routed tokens of each expert and inner products of router logits."""
        return frozenset({"gate_norm_moment", "logit_gram"})

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Choose the dominant experts, then group and merge layer by layer."""
        usage = {layer: self.usage(stats, layer) for layer in inventory.moe_layers}
        dominant = self._dominant(inventory, usage)
        return [
            self._merged(usage[layer], dominant[layer], stats.layer("logit_gram", layer))
            if layer in dominant
            else LayerPlan()
            for layer in range(len(inventory.layers))
        ]

    def usage(self, stats: Stats, layer: int) -> Array:
        """Return the share of the routed tokens of ``layer`` that each expert got, shape (E,); 0 without any token."""
        hits = stats.layer("gate_norm_moment", layer)[:, 0, 0]
        total = math.fsum(hits)  # exactly rounded, so that it does not depend on the order of experts
        shares: Array = hits / total if total > 0.0 else np.zeros_like(hits)
        return shares

    def _dominant(self, inventory: Inventory, usage: Mapping[int, Array]) -> dict[int, tuple[int, ...]]:
        """Return the experts of each layer that the others are merged into, ascending."""
        if self.scope == "layer":
            counts = expert_counts(inventory, self.keep, mapped=True)
            return {layer: top(usage[layer], counts[layer]) for layer in counts}
        return top_overall(usage, overall_count(inventory, self.keep))

    def _merged(self, usage: Array, dominant: tuple[int, ...], logit_gram: Array) -> LayerPlan:
        """Return the plan of a layer whose other experts join the ``dominant`` ones."""
        similarity = cosine(logit_gram)  # (cos + 1) / 2 has the same order
        groups: dict[int, list[int]] = {expert: [expert] for expert in dominant}
        for expert in range(len(usage)):
            if expert not in groups:
                nearest = dominant[int(np.argmax(similarity[expert, list(dominant)]))]
                groups[nearest].append(expert)
        members = list(groups.values())
        kernel: Literal["aligned", "mean"] = "aligned" if self.alignment else "mean"
        return merge_plan(members, usage_weights(members, usage), list(groups), kernel=kernel, router="map")
