"""Diversifying expert knowledge: experts that are alike by CKA form groups, each of which becomes one expert."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from methods.criterion import REAP, Frequency
from methods.framework.grouping import (
    Groups,
    by_matrix,
    centrality,
    centres,
    grouped,
    keep_one,
    merge_plan,
    symmetric,
    uniform_weights,
    usage_weights,
)
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, RouterRule
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Array, Stats
from methods.kernels.clustering import agglomerate
from methods.kernels.learned_weights import fitted_weights, token_gates
from methods.kernels.partition import partition


class _Diversify(LayerwiseMethod):
    """The first step of both methods: similarity of experts, and groups of similar ones."""

    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    similarity: Literal["activations", "weights"] = "activations"
    """Linear CKA of the experts' outputs on sampled tokens (data-centric), or of their weights (data-agnostic)."""
    grouping: Literal["partition", "agglomerative"] = "partition"
    """Graph partition that maximises the mean similarity per member, or average linkage on 1 - CKA."""

    @property
    def _cka(self) -> str:
        return "output_cka" if self.similarity == "activations" else "weight_cka"

    def cka(self, stats: Stats, layer: int) -> Array:
        """Return the similarity of the experts of ``layer``, shape (E, E)."""
        return symmetric(stats.layer(self._cka, layer))

    def groups(self, inventory: Inventory, cka: Array, layer: int, router: RouterRule) -> Groups:
        """Return the groups of similar experts of ``layer``."""
        if self.grouping == "partition":
            return grouped(inventory, layer, self.keep, router, by_matrix(cka, partition))
        split = by_matrix(1.0 - cka, partial(agglomerate, linkage="average"))
        return grouped(inventory, layer, self.keep, router, split)


class CkaMerge(_Diversify):
    """Merge the experts and the router rows of each group of similar experts.

    *Source*: arXiv 2407.09590, the two steps of the abstract: groups in feature space, merging in weight space, both of
    experts and of router rows.

    *Differs*: the paper's formulas could not be read, so what is uncertain is a knob. The similarity is linear CKA;
    the weights' matrix puts all three matrices side by side with hidden dimensions as samples, for which no alignment of
    channels is needed. The partition maximises the mean similarity per member, since the plain sum favours one huge
    group; it is exact for up to ten experts, and spectral clustering with local moves above. ``weights`` is
    ``uniform`` by default because "merging" without more is the plain average. ``learned`` fits convex weights in closed form
    to the *outputs* of the members on the sampled tokens with the original gates: a surrogate, since experts are merged in
    weight space, where an output is not linear. ``alignment`` is off because the paper is not known to align. The
    default ``mean`` of rows loses the log of the group's size in logits where members are copies of each other; ``map``
    keeps all rows and loses nothing there.
    """

    name: ClassVar[str] = "cka_merge"
    title: ClassVar[str] = "Diversify (CKA merge)"
    source: ClassVar[str] = "arXiv 2407.09590"

    weights: Literal["uniform", "frequency", "learned"] = "uniform"
    """Factors of the members: equal, by routed tokens, or fitted to the members' outputs."""
    alignment: bool = False
    """Whether hidden channels are matched to those of the heaviest member before merging."""
    router: RouterRule = "mean"
    """How the router follows; the paper merges the rows."""

    @property
    def needs(self) -> frozenset[str]:
        """The similarity, and what the weights are made of."""
        return frozenset({self._cka, *_WEIGHT_NEEDS[self.weights]})

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Group the experts of this layer and merge each group."""
        cka = self.cka(stats, layer)
        groups = self.groups(inventory, cka, layer, self.router)
        weights = self._weights(inventory, stats, layer, groups)
        kernel: Literal["mean", "aligned"] = "aligned" if self.alignment else "mean"
        return merge_plan(groups, weights, centres(groups, weights, cka), kernel, router=self.router)

    def _weights(self, inventory: Inventory, stats: Stats, layer: int, groups: Groups) -> list[tuple[float, ...]]:
        if self.weights == "uniform":
            return uniform_weights(groups)
        if self.weights == "frequency":
            return usage_weights(groups, stats.layer("gate_norm_moment", layer)[:, 0, 0])
        logits, gram = stats.layer("token_logits", layer), stats.layer("token_gram", layer)
        correction = stats.layer("router_correction", layer)
        gates = token_gates(logits, inventory.router, inventory.layers[layer].top_k, correction)
        return [fitted_weights(group, gates, gram) if len(group) > 1 else (1.0,) for group in groups]


class CkaPrune(_Diversify):
    """Keep one expert of each group of similar experts.

    *Source*: arXiv 2407.09590, the pruning variant.

    *Differs*: which expert stands for a group is not known; by default the one with the largest REAP score, because it has
    to serve the tokens that its own router row wins. See ``CkaMerge`` for similarity and groups.
    """

    name: ClassVar[str] = "cka_prune"
    title: ClassVar[str] = "Diversify (CKA prune)"
    source: ClassVar[str] = "arXiv 2407.09590"

    representative: Literal["reap", "frequency", "medoid"] = "reap"
    """Which member stays: by REAP score, by routed tokens, or the one most similar to the others."""
    router: Literal["slice", "map"] = "slice"
    """Whether only the representative's row stays, or all rows of the group, which then lead to it."""

    @property
    def needs(self) -> frozenset[str]:
        """The similarity, and the moments that rank the members."""
        return frozenset({self._cka, *([] if self.representative == "medoid" else ["gate_norm_moment"])})

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Group the experts of this layer and keep one of each group."""
        cka = self.cka(stats, layer)
        groups = self.groups(inventory, cka, layer, self.router)
        ranking = {"reap": REAP, "frequency": Frequency}.get(self.representative)
        scores = [] if ranking is None else [ranking().scores(stats, layer)]
        return keep_one(groups, *scores, *centrality(groups, cka), router=self.router)


_WEIGHT_NEEDS: dict[str, tuple[str, ...]] = {
    "uniform": (),
    "frequency": ("gate_norm_moment",),
    "learned": ("token_logits", "token_gram", "router_correction"),
}
