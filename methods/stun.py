"""STUN, structured stage: clusters of experts by their router rows, of which one expert each stays."""

from __future__ import annotations

from functools import partial
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.grouping import by_matrix, centrality, grouped, keep_one, symmetric
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Array, Stats
from methods.kernels.clustering import agglomerate, gram_distance


class STUN(LayerwiseMethod):
    """Cluster experts whose router rows are close (and that are chosen together), and keep one per cluster.

    *Source*: arXiv 2409.06211, structured stage; the unstructured stage is a method of its own.

    *Differs*: the greedy clustering with a bound on the largest distance inside a cluster, whose threshold has to be tuned
    to reach a number of clusters, is complete linkage down to that number. The two parts of the distance are each divided by
    their largest value, since a weight between logits and tokens has no fixed meaning; the co-activation part is off
    by default, because its weight in the paper could not be verified and the method then needs no tokens. The
    representative keeps its own matrices and row: averaged rows above one expert's matrices are not expressible in a plan.
    """

    name: ClassVar[str] = "stun"
    title: ClassVar[str] = "STUN (structured stage)"
    source: ClassVar[str] = "arXiv 2409.06211"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    coactivation_weight: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """How much being chosen for the same tokens brings two experts together, against the distance of their rows."""
    representative: Literal["nearest", "frequency"] = "nearest"
    """Which member stays: the one whose row is nearest to the cluster's mean row, or the one with most routed tokens."""
    router: Literal["slice", "map"] = "slice"
    """Whether only the representative's row stays, or all rows of the cluster, which then lead to it."""

    @property
    def needs(self) -> frozenset[str]:
        """Inner products of the router's rows, and counts where a knob asks for them."""
        names = {"router_row_gram"}
        if self.coactivation_weight > 0.0:
            names.add("coactivation")
        if self.representative == "frequency":
            names.add("gate_norm_moment")
        return frozenset(names)

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Cluster the experts of this layer and keep one per cluster."""
        rows = gram_distance(stats.layer("router_row_gram", layer))
        distance = _relative(rows)
        if self.coactivation_weight > 0.0:
            together = symmetric(stats.layer("coactivation", layer))
            distance = distance - self.coactivation_weight * _relative(together)
        split = by_matrix(distance, partial(agglomerate, linkage="complete"))
        groups = grouped(inventory, layer, self.keep, self.router, split)
        scores = []
        if self.representative == "frequency":
            scores.append(stats.layer("gate_norm_moment", layer)[:, 0, 0])
        # the row nearest to the mean of a cluster is the one with the smallest sum of squared distances to the others
        return keep_one(groups, *scores, *centrality(groups, -(rows**2)), router=self.router)


def _relative(matrix: Array) -> Array:
    """Return ``matrix`` divided by its largest value off the diagonal, where that is positive."""
    off = matrix[~np.eye(len(matrix), dtype=bool)]
    largest = float(off.max()) if len(off) else 0.0
    return matrix / largest if largest > 0.0 else matrix
