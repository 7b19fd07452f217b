"""MoE-I², stage one: importance of layers, counts by importance, genetic search in each layer, choice across layers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import expert_counts
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import ProbingMethod
from methods.framework.probe import Probe
from methods.framework.removal_allocation import removal_counts
from methods.framework.stats import GATE_POWERS, NORM_POWERS, Array, Stats
from methods.kernels.gate_change import Indices
from methods.kernels.genetic import Breeding, breed
from methods.kernels.reception_field import reception_field
from methods.kernels.subset_search import Found, best_subsets, eliminate, subset_count
from methods.naee import Batches, kept, sampled_loss

EXHAUSTIVE = 5000
"""Sets of one layer that are all tried, however few a genetic search would try."""


class MoEI2(ProbingMethod):
    """Layers lose experts in inverse proportion to their importance; a genetic search finds which ones.

    The error after several layers chooses among the best sets that the search finds for each layer.

    1. Importance I_ij of expert j in layer i is the change of the layer's output without it; I_i = sum_j I_ij.
    2. Layer i loses a share of all that go in proportion to 1 / I_i, by largest remainder, no more than its router can
       spare (``methods.framework.removal_allocation``).
    3. Layer-wise genetic search keeps the ``candidates`` sets with the least change of the layer's output; every set is tried
       where there are no more of them than the search would evaluate.
    4. Block-wise KT-Reception Field: in each block of ``field`` MoE layers, the combination with the least error at
       the block's output.

    *Source*: arXiv 2411.01016, sections 3.1 and 3.2 (importance, LGS, KTRF).

    *Differs*: the paper's formula for the counts, its sizes K and T, its share of parents and its probability of a
    mutation are not known to us: ``allocation`` follows the stated direction, and 3, 3, 0.2 and 0.3 are guesses of
    others. Counts add up exactly and respect limits. Importance and fitness are the change of the routed output when rows
    leave the router (fitness from inner products on the sampled tokens, as ``naee``). Raw importance grows with depth, so
    early layers lose most: ``normalise`` divides it by the norm of the layer's output, and is off as we read the paper.
    Whether a block starts from original or compressed states is not known (``block_input``). Draws of the search follow
    the order of importance, so labels of experts do not matter. ``seeded`` puts the
    greedy set into the first population, which the paper does not: on synthetic layers of 64 experts the search from
    random sets alone ended up to 0.5 % above plain greedy's loss where 16 go and 0.6 to 1.3 % above it where 32 go
    (``python -m bench.perf.subset``), so it is on by default.
    """

    name: ClassVar[str] = "moe_i2"
    title: ClassVar[str] = "MoE-I² (inter-expert)"
    source: ClassVar[str] = "arXiv 2411.01016, stage one"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})
    law_knobs: ClassVar[Mapping[str, Any]] = {"population": 8, "iterations": 3}

    importance: Literal["removal_loss", "frequency", "reap"] = Field(
        default="removal_loss", description="I_ij: change of the output without expert j, its tokens, or its REAP score"
    )
    normalise: Literal["none", "output_norm"] = Field(
        default="none", description="whether a layer's importance is divided by the norm of its routed output"
    )
    allocation: Literal["importance", "uniform"] = Field(
        default="importance", description="experts that each layer loses: by 1 / importance, or as `keep` says"
    )
    population: int = Field(default=100, ge=4, le=500, description="sets alive at a time")
    iterations: int = Field(default=50, ge=0, le=200, description="generations")
    elite: float = Field(default=0.2, gt=0.0, lt=1.0, description="share of the population that survives and breeds")
    mutation: float = Field(
        default=0.3, ge=0.0, le=1.0, description="probability that a child has one member exchanged"
    )
    seeded: bool = Field(
        default=True, description="whether the first population holds the greedy set; false: the paper's search"
    )
    seed: int = Field(default=0, ge=0, description="seed of the search; each layer has a stream of its own")
    candidates: int = Field(
        default=3, ge=1, le=8, description="K: sets per layer that the blocks choose from; 1: no blocks"
    )
    field: int = Field(default=3, ge=1, le=4, description="T: MoE layers in a block")
    block_input: Literal["original", "sequential"] = Field(
        default="original",
        description="states that enter a block: of the original model, or of the one compressed so far",
    )
    batches: Batches = 16

    @property
    def needs(self) -> frozenset[str]:
        """Importance, what the subset loss reads, and the norms of outputs where they normalise."""
        importance = "removal_loss" if self.importance == "removal_loss" else "gate_norm_moment"
        norm = {"routed_norm"} if self.normalise == "output_norm" and self.allocation == "importance" else set()
        return frozenset({importance, "token_logits", "token_gram", "router_correction"} | norm)

    @property
    def probing(self) -> bool:
        """True, except where each layer has one candidate or everything is kept."""
        return self.candidates > 1 and self.keep != 1.0

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse depth knots where importance makes the depth profile."""
        if self.allocation == "importance" and not isinstance(self.keep, float):
            return "depth knots contradict allocation='importance', which finds the depth profile itself; use 'uniform'"
        return super().refuse(inventory)

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Take each layer's best set."""
        options = self._options(inventory, stats)
        return [options[layer][0] if layer in options else LayerPlan() for layer in range(len(inventory.layers))]

    def decide_by_probe(self, inventory: Inventory, stats: Stats, probe: Probe) -> list[LayerPlan]:
        """Choose among the layers' best sets by the error after each block."""
        options = self._options(inventory, stats)
        chosen = reception_field(probe, options, self.field, self.block_input == "sequential")
        return [chosen.get(layer, LayerPlan()) for layer in range(len(inventory.layers))]

    def _options(self, inventory: Inventory, stats: Stats) -> dict[int, list[LayerPlan]]:
        """Return the candidate plans of each MoE layer, the best first."""
        options = {}
        for layer, removed in self.removals(inventory, stats).items():
            experts = inventory.layers[layer].experts
            found = self.search(inventory, stats, layer, removed) if removed else []
            options[layer] = [kept(experts, one.removed) for one in found] or [LayerPlan()]
        return options

    def removals(self, inventory: Inventory, stats: Stats) -> dict[int, int]:
        """Return the number of experts that each MoE layer loses."""
        counts = expert_counts(inventory, self.keep)
        removed = {layer: inventory.layers[layer].experts - count for layer, count in counts.items()}
        if self.allocation == "uniform" or not any(removed.values()):
            return removed
        router = inventory.router
        most = [inventory.layers[i].experts - router.fewest_experts(inventory.layers[i].top_k) for i in counts]
        importance = [self.layer_importance(stats, layer) for layer in counts]
        shares = removal_counts(importance, sum(removed.values()), most, router.groups)
        return dict(zip(counts, shares, strict=True))

    def layer_importance(self, stats: Stats, layer: int) -> float:
        """Return I_i, the sum of the importance of the layer's experts."""
        total = float(self.expert_importance(stats, layer).sum())
        if self.normalise == "none":
            return total
        return total / max(float(stats.layer("routed_norm", layer)), float(np.finfo(np.float64).tiny))

    def expert_importance(self, stats: Stats, layer: int) -> Array:
        """Return I_ij of each expert of ``layer``, shape (E,)."""
        if self.importance == "removal_loss":
            return stats.layer("removal_loss", layer)
        moments = stats.layer("gate_norm_moment", layer)
        tokens_E: Array = moments[:, 0, 0]
        if self.importance == "frequency":
            return tokens_E
        reap_E: Array = moments[:, GATE_POWERS.index(1), NORM_POWERS.index(1)] / np.maximum(tokens_E, 1.0)
        return reap_E

    def search(self, inventory: Inventory, stats: Stats, layer: int, removed: int) -> list[Found]:
        """Return the ``candidates`` best sets of experts to remove, the best first.

        Args:
            inventory: the model.
            stats: measured statistics of the layer.
            layer: its index.
            removed: how many experts a set has.
        """
        experts, groups = inventory.layers[layer].experts, inventory.router.groups
        loss = sampled_loss(inventory, stats, layer, self.batches, removed)
        if subset_count(experts, removed, groups) <= max(self.population * self.iterations, EXHAUSTIVE):
            return best_subsets(loss.losses, experts, removed, groups, self.candidates)
        settings = Breeding(self.population, self.iterations, self.elite, self.mutation)
        order = by_importance(self.expert_importance(stats, layer), groups)
        seeds = [eliminate(loss.neighbours(), removed, groups)] if self.seeded else []
        rng = np.random.default_rng([self.seed, layer])
        return breed(loss.losses, order, removed, groups, settings, rng, self.candidates, seeds).best


def by_importance(importance_E: Array, groups: int) -> Indices:
    """Return the experts of each group in descending order of importance, ties by index."""
    size = len(importance_E) // groups
    ranks = np.argsort(-importance_E.reshape(groups, size), axis=1, kind="stable")
    order: Indices = (ranks + size * np.arange(groups)[:, None]).ravel()
    return order
