"""EASY-EP: keep the experts that change the residual stream most on one domain."""

from __future__ import annotations

from typing import ClassVar

from methods.framework.allocation import expert_counts, top
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Stats


class EasyEP(LayerwiseMethod):
    """Keep the experts with the largest S_j = sum over T_j of max(0, 1 - cos(h, h + y)) g_j |f_j|_2.

    h is the residual stream that enters the MoE sub-layer, before its norm, as in the official code, and y the routed output
    (shared experts left out), so a token counts by how far the routed experts turn the stream. The paper
    calibrates on 25 long samples of the one domain that the pruned model is meant for.

    *Source*: arXiv 2504.06792 (output-aware importance and token contribution), and its official code.

    *Differs*: the official code keeps all router rows and masks logits in a patched server, which is why its checkpoints
    need that server; here the rows are sliced. It adds the scores of several domains after scaling each layer's to one;
    here a mixture of domains is one corpus.
    """

    name: ClassVar[str] = "easy_ep"
    title: ClassVar[str] = "EASY-EP"
    source: ClassVar[str] = "arXiv 2504.06792"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    @property
    def needs(self) -> frozenset[str]:
        """The score itself, one number for each expert."""
        return frozenset({"residual_gate_norm"})

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Keep the top scorers of this layer."""
        count = expert_counts(inventory, self.keep)[layer]
        return LayerPlan(experts=top(stats.layer("residual_gate_norm", layer), count, inventory.router.groups))
