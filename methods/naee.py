"""NAEE: in each layer remove the set of experts whose removal changes the layer's output least."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from methods.framework.allocation import expert_counts
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Keep, LayerwiseMethod, ProbingMethod
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from methods.kernels.subset_loss import SubsetLoss
from methods.kernels.subset_search import best_subsets, eliminate, exchange, subset_count

MOST_CANDIDATES = 20_000
"""Sets of one layer that are tried out; half of 16 experts makes 12,870."""

Batches = Annotated[int, Field(ge=1, le=256, description="equal parts of the sampled tokens whose norms are added up")]


def kept(experts: int, removed: tuple[int, ...]) -> LayerPlan:
    """Return the plan of a layer that loses ``removed``."""
    gone = set(removed)
    return LayerPlan(experts=tuple(expert for expert in range(experts) if expert not in gone))


def sampled_loss(inventory: Inventory, stats: Stats, layer: int, batches: int, most_removed: int) -> SubsetLoss:
    """Return the loss of subsets of one layer on the sampled tokens of the calibration corpus.

    Args:
        inventory: the model.
        stats: holds what the sampled tokens gave in the layer.
        layer: its index.
        batches: parts of the tokens over whose norms the loss is summed.
        most_removed: largest number of experts that a subset removes.
    """
    logits, gram = stats.layer("token_logits", layer), stats.layer("token_gram", layer)
    return SubsetLoss(
        inventory.router,
        inventory.layers[layer].top_k,
        logits,
        gram,
        stats.layer("router_correction", layer),
        batches=batches,
        most_removed=most_removed,
    )


def excess(inventory: Inventory, counts: dict[int, int]) -> str | None:
    """Return why trying out every set would take too long, or None."""
    for layer, count in counts.items():
        experts = inventory.layers[layer].experts
        candidates = subset_count(experts, experts - count, inventory.router.groups)
        if candidates > MOST_CANDIDATES:
            return (
                f"there are {candidates:.3g} ways to remove {experts - count} of the {experts} experts of layer {layer}, "
                f"more than the {MOST_CANDIDATES} that are tried out; use method naee_greedy"
            )
    return None


def too_many(inventory: Inventory, keep: Keep) -> str | None:
    """Return why a method that tries every set cannot leave ``keep`` of the experts, or None."""
    try:
        return excess(inventory, expert_counts(inventory, keep))
    except RefusedError as error:
        return str(error)


class NAEE(LayerwiseMethod):
    """Remove the set of experts with the least sum over batches of ||routed output - output of the survivors||_F.

    Every set is tried. What is left is routed as in the sliced checkpoint. Of equal sets, that which keeps lower indices
    is taken, as everywhere in this suite.

    *Source*: arXiv 2402.14800, section 3.2 (layer-wise expert pruning), and the loss of its official code.

    *Differs*: losses come from inner products of the experts' outputs on the sampled tokens, so no expert runs for a set;
    a batch is one of ``batches`` equal parts of these tokens (there: 8 sequences). Top-k, renormalisation and groups are
    the family's (there: Mixtral's). The official code takes the first of equal sets in the order of those removed.
    """

    name: ClassVar[str] = "naee"
    title: ClassVar[str] = "NAEE"
    source: ClassVar[str] = "arXiv 2402.14800, section 3.2"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})
    law_experts: ClassVar[int] = 12

    batches: Batches = 16

    @property
    def needs(self) -> frozenset[str]:
        """Logits and inner products of the experts' outputs, token by token, and the bias on the router's choice."""
        return frozenset({"token_logits", "token_gram", "router_correction"})

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse where there are too many sets to try each."""
        return super().refuse(inventory) or too_many(inventory, self.keep)

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Try every set of the right size."""
        experts, count = inventory.layers[layer].experts, expert_counts(inventory, self.keep)[layer]
        if count == experts:
            return LayerPlan()
        if reason := excess(inventory, {layer: count}):
            raise RefusedError(f"{self.name}: {reason}")
        loss = sampled_loss(inventory, stats, layer, self.batches, experts - count)
        return kept(experts, best_subsets(loss.losses, experts, experts - count, inventory.router.groups)[0].removed)


class NAEEProgressive(ProbingMethod):
    """NAEE layer by layer: each layer is searched on the states that the layers pruned before it produce.

    The loss is ||target - output of the survivors||_F, the target being the routed output of the uncompressed model, so a
    layer may also make up for the errors of those before it.

    *Source*: arXiv 2402.14800, section 3.2 (progressive pruning), and its official code.

    *Differs*: as ``naee``. The official code runs the whole model again for every layer; the probe goes on from the states
    that it has.
    """

    name: ClassVar[str] = "naee_progressive"
    title: ClassVar[str] = "NAEE, progressive"
    source: ClassVar[str] = "arXiv 2402.14800, section 3.2, progressive"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})
    law_experts: ClassVar[int] = 12

    batches: Batches = 16

    @property
    def needs(self) -> frozenset[str]:
        """The bias on the router's choice; everything else is asked of the probe."""
        return frozenset({"router_correction"})

    @property
    def probing(self) -> bool:
        """True, except where everything is kept."""
        return self.keep != 1.0

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse where there are too many sets to try each."""
        return super().refuse(inventory) or too_many(inventory, self.keep)

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Keep everything: the one case that needs no probe."""
        return [LayerPlan() for _ in inventory.layers]

    def decide_by_probe(self, inventory: Inventory, stats: Stats, probe: Probe) -> list[LayerPlan]:
        """Search each layer after those before it have been decided."""
        decided: dict[int, LayerPlan] = {}
        for layer, count in expert_counts(inventory, self.keep).items():
            experts = inventory.layers[layer].experts
            if count == experts:
                continue
            view = probe.layer_view(layer, decided)
            loss = SubsetLoss(
                inventory.router,
                inventory.layers[layer].top_k,
                view.logits_SE,
                view.gram_SXX,
                stats.layer("router_correction", layer),
                batches=self.batches,
                most_removed=experts - count,
                target=True,
            )
            best = best_subsets(loss.losses, experts, experts - count, inventory.router.groups)[0]
            decided[layer] = kept(experts, best.removed)
        return [decided.get(layer, LayerPlan()) for layer in range(len(inventory.layers))]


class NAEEGreedy(LayerwiseMethod):
    """NAEE's loss, searched by backward elimination and then by exchange moves, for layers with many experts.

    Each step removes the expert that leaves the least loss. Then one removed expert is exchanged for one that stayed
    while that helps: after ``sweeps`` sweeps, or sooner, no single exchange lowers the loss.

    *Source*: the loss of arXiv 2402.14800, section 3.2; the search is the usual local search.

    *Differs*: not the paper's exhaustive search, which 64 experts put out of reach; therefore never called NAEE.
    """

    name: ClassVar[str] = "naee_greedy"
    title: ClassVar[str] = "NAEE's loss, greedy"
    source: ClassVar[str] = "loss of arXiv 2402.14800, section 3.2"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    batches: Batches = 16
    sweeps: int = Field(default=10, ge=0, le=100, description="most sweeps of exchange moves; 0: plain elimination")

    @property
    def needs(self) -> frozenset[str]:
        """Logits and inner products of the experts' outputs, token by token, and the bias on the router's choice."""
        return frozenset({"token_logits", "token_gram", "router_correction"})

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Eliminate, then exchange."""
        experts, count = inventory.layers[layer].experts, expert_counts(inventory, self.keep)[layer]
        if count == experts:
            return LayerPlan()
        groups = inventory.router.groups
        loss = sampled_loss(inventory, stats, layer, self.batches, experts - count)
        near = loss.neighbours()
        found = eliminate(near, experts - count, groups)
        return kept(experts, exchange(near, found, self.sweeps, groups).removed)
