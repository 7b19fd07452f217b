"""REAM: merge experts into the salient ones, in groups that the most salient fill first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.criterion import Criterion
from methods.framework.allocation import expert_counts, top
from methods.framework.errors import RefusedError
from methods.framework.grouping import merge_plan, symmetric, usage_weights
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Array, Stats
from methods.kernels.cosine import cosine


class REAM(LayerwiseMethod):
    """Keep the most salient experts as centroids and merge the others into them, weighted by saliency.

    Saliency is REAP's. The centroids are walked from the most salient on, and each takes the experts most similar to it
    that nobody took before, until its group has ``group_size`` members or no expert is free. So most late centroids stay
    as they are, and where few experts go, the most salient one takes them all, however unlike they are. Similarity is the
    mean of (cos + 1) / 2 of the experts' outputs and of one minus the distance of their normalised columns of router
    logits. Hidden channels are aligned to the centroid, and the centroid's router row stays. The paper propagates the
    merged layer's states (``propagation: sequential``).

    No expert is ever left over: n groups of C members hold n C >= E experts, and less is refused.

    *Source*: arXiv 2604.04356 (pseudo-pruning, gated similarity, merging) and its official code.

    *Differs*: (1) channels are aligned on the products of weights. The official code adds distances of activations, but
    draws the tokens anew for each expert, so that channels are compared on different tokens, and of weights after a
    projection to 64 dimensions. (2) The cosine of outputs is the mean over tokens, as in the text; the official code takes
    the cosine of mean outputs. A gate, being positive, changes no cosine of a token. (3) Its saliency multiplies by the
    gate twice, because the outputs it is given are gated already: ``gate_power=2``. (4) An expert without tokens has
    weight 0, so it adds nothing to its group; there it gets the smallest saliency of the others. (5) n is refused where
    n C < E; there the division is rounded down first. (6) g is the weight that multiplies the output in the model. The official
    code takes the softmax over all experts also where the model divides the chosen weights by their sum (Qwen3), so there its
    saliency gives less to tokens of which the choice is spread. (7) The saliency is the mean over all routed tokens; there it
    is the mean over batches of the means within them, so that a token of a batch with few counts more.
    """

    name: ClassVar[str] = "ream"
    title: ClassVar[str] = "REAM"
    source: ClassVar[str] = "arXiv 2604.04356"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    group_size: int = Field(default=16, ge=2, le=64, description="C: most members of a group, its centroid included")
    gate_power: Literal[1, 2] = Field(default=1, description="power of the gate in the saliency: 1 is REAP")
    gate_similarity: Literal["layer", "fixed"] = Field(
        default="layer",
        description="distances of router logits are divided by the largest of the layer (official code), or by 2, the "
        "largest there can be",
    )

    @property
    def needs(self) -> frozenset[str]:
        """Moments for the saliency, cosines of outputs, inner products of router logits."""
        return frozenset({"gate_norm_moment", "output_cosine", "logit_gram"})

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Group and merge the experts of this layer.

        Raises:
            RefusedError: the groups cannot hold all experts.
        """
        experts = inventory.layers[layer].experts
        count = expert_counts(inventory, self.keep)[layer]
        if count * self.group_size < experts:
            raise RefusedError(
                f"ream: {count} groups of at most {self.group_size} cannot hold the {experts} experts of layer {layer}; "
                f"raise group_size to {-(-experts // count)} or keep to {1 / self.group_size:.3g}"
            )
        saliency = Criterion(b=1, alpha=self.gate_power, beta=1).scores(stats, layer)
        centroids = top(saliency, count, inventory.router.groups)
        groups = self.groups(saliency, centroids, self.similarity(stats, layer))
        into = [group[0] for group in groups]
        return merge_plan(groups, usage_weights(groups, saliency), into, kernel="aligned", router="slice")

    def similarity(self, stats: Stats, layer: int) -> Array:
        """Return how alike the experts of ``layer`` are, from 0 to 1, shape (E, E)."""
        outputs = (symmetric(stats.layer("output_cosine", layer)) + 1.0) / 2.0
        distance = np.sqrt(np.maximum(2.0 - 2.0 * cosine(stats.layer("logit_gram", layer)), 0.0))
        np.fill_diagonal(distance, 0.0)
        largest = 2.0 if self.gate_similarity == "fixed" else float(distance.max())
        mean: Array = (outputs + 1.0 - distance / (largest or 1.0)) / 2.0
        return mean

    def groups(self, saliency: Array, centroids: Sequence[int], similarity: Array) -> list[list[int]]:
        """Return one group for each centroid, which stands first in it.

        Args:
            saliency: of each expert, (E,); the most salient centroid takes first.
            centroids: experts that begin a group.
            similarity: of each pair of experts, (E, E); the nearest free ones join.
        """
        free = set(range(len(saliency))) - set(centroids)
        groups: list[list[int]] = []
        for centroid in sorted(centroids, key=lambda expert: (-saliency[expert], expert)):
            nearest = np.argsort(-similarity[centroid], kind="stable").tolist()
            taken = [expert for expert in nearest if expert in free][: self.group_size - 1]
            free.difference_update(taken)
            groups.append([centroid, *taken])
        return groups
