"""HC-SMoE: hierarchical clustering of experts by their mean outputs, merged by frequency."""

from __future__ import annotations

from functools import partial
from typing import ClassVar, Literal

from methods.framework.grouping import by_matrix, centres, grouped, merge_plan, uniform_weights, usage_weights
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan, RouterRule
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Array, Stats
from methods.kernels.clustering import agglomerate, euclidean, gram_distance

_FEATURES = {"output": "dense_output_mean", "weights": "weight_cka", "router": "router_row_gram"}


class HCSMoE(LayerwiseMethod):
    """Cluster experts by the distance of their mean outputs over all tokens, and merge each cluster by frequency.

    *Source*: arXiv 2410.08589, section 3: o_j = mean over all calibration tokens of f_j(x), Euclidean distance, average
    linkage; router rows stay and lead to the merged expert.

    *Differs*: the mean runs over evenly spaced sampled tokens. ``complete`` joins the clusters with the *smallest*
    farthest distance (the official code takes the largest) and an unknown linkage is refused (the official scripts'
    misspelt name silently selects K-means). The feature ``weights`` is 1 - CKA, which does not depend on the order of
    channels, where the paper's ablation compares flattened weights. The official "zip" merge is not offered. Frequencies
    count the model's own top-k; the official code counts the first two choices of a token, whatever the model's top-k is.
    """

    name: ClassVar[str] = "hc_smoe"
    title: ClassVar[str] = "HC-SMoE"
    source: ClassVar[str] = "arXiv 2410.08589"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    linkage: Literal["average", "complete", "single"] = "average"
    """Distance between clusters: mean, largest or smallest distance between their members."""
    feature: Literal["output", "weights", "router"] = "output"
    """What is compared: mean outputs, weights (1 - CKA), or rows of the router."""
    weights: Literal["frequency", "uniform"] = "frequency"
    """Factors of the members: by routed tokens, or equal."""
    alignment: bool = False
    """Whether hidden channels are matched to those of the heaviest member before merging."""
    router: RouterRule = "map"
    """How the router follows."""

    @property
    def needs(self) -> frozenset[str]:
        """The feature, and the routed tokens that weigh the members."""
        return frozenset({_FEATURES[self.feature], *(["gate_norm_moment"] if self.weights == "frequency" else [])})

    def distance(self, stats: Stats, layer: int) -> Array:
        """Return the distances between the experts of ``layer``, shape (E, E)."""
        value = stats.layer(_FEATURES[self.feature], layer)
        if self.feature == "output":
            return euclidean(value)
        return gram_distance(value) if self.feature == "router" else 1.0 - value

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Cluster the experts of this layer and merge each cluster."""
        distance = self.distance(stats, layer)
        split = by_matrix(distance, partial(agglomerate, linkage=self.linkage))
        groups = grouped(inventory, layer, self.keep, self.router, split)
        if self.weights == "frequency":
            weights = usage_weights(groups, stats.layer("gate_norm_moment", layer)[:, 0, 0])
        else:
            weights = uniform_weights(groups)
        into = centres(groups, weights, -distance)
        return merge_plan(groups, weights, into, "aligned" if self.alignment else "mean", router=self.router)
