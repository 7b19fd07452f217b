"""Parts of a record, made from what the stages of a run leave."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from bench.records.record import CostInfo, RatioInfo, RecoveryInfo, SimilarityInfo
from bench.settings.recovery import RecoverySettings
from methods.framework.cost import Cost, cost, cost_of, ratios, zeros
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan
from methods.framework.stats import Array, Stats

if TYPE_CHECKING:
    from bench.recovery.recover import Recovered


def cost_info(cost: Cost) -> CostInfo:
    """Return ``cost`` as a part of a record."""
    return CostInfo(**asdict(cost))


def ratio_info(plan: Plan, inventory: Inventory) -> RatioInfo:
    """Return the fractions that ``plan`` removes as a part of a record."""
    after = cost(plan, inventory)
    share = zeros(plan, inventory) / after.routed_parameters if after.routed_parameters else 0.0
    return RatioInfo(**asdict(ratios(cost_of(inventory), after)), zeros=share)


SIMILARITIES = ("output_cka", "output_cosine", "weight_cka")
"""Statistics that compare every two experts of a layer, on a scale that ends at 1."""

SHOWN_EXPERTS = 64
"""Experts of a layer up to which a record keeps every pair, not the mean alone."""


def similarity_info(stats: Stats, inventory: Inventory, measured: frozenset[str]) -> tuple[SimilarityInfo, ...]:
    """Return how alike the experts of each layer are as parts of a record.

    Args:
        stats: measured on the source.
        inventory: the source.
        measured: names of the statistics that belong to the row; ``stats`` may hold those of other rows, too.
    """
    return tuple(
        _similarity(name, layer, np.asarray(stats.layer(name, layer), dtype=np.float64))
        for name in SIMILARITIES
        if name in measured
        for layer in inventory.moe_layers
        if inventory.layers[layer].experts > 1
    )


def _similarity(name: str, layer: int, value_EE: Array) -> SimilarityInfo:
    experts = len(value_EE)
    pairs = (value_EE + value_EE.T)[np.triu_indices(experts, 1)] / 2.0
    text = " ".join(str(round(100 * float(pair))) for pair in pairs) if experts <= SHOWN_EXPERTS else None
    return SimilarityInfo(statistic=name, layer=layer, experts=experts, mean=round(float(pairs.mean()), 6), pairs=text)


def group_sizes(plan: Plan) -> dict[int, tuple[int, ...]]:
    """Return, for each layer with merged experts, how many of the source's experts each expert stands for, descending."""
    sizes = {}
    for layer, what in enumerate(plan.layers):
        if what.merges:
            alone = len(what.experts or ()) - len(what.merges)
            sizes[layer] = tuple(sorted([*(len(merge.members) for merge in what.merges), *[1] * alone], reverse=True))
    return sizes


def realisation(plan: Plan | None) -> str:
    """Return how the compressed form of ``plan`` is run for quality, for a record."""
    stages = frozenset() if plan is None else plan.stages
    notes = [note for stage, note in _REALISED.items() if stage in stages]
    return "; ".join(["checkpoint written, loaded in transformers", *notes])


_REALISED = {
    "channels": "experts of their own widths",
    "rank": "factors multiplied one after the other",
    "sparsity": "zeros stored and multiplied",
    "bits": "few bits as the values that they stand for",
}


def recovery_info(settings: RecoverySettings | None, done: Recovered | None) -> RecoveryInfo | None:
    """Return a training as a part of a record."""
    if settings is None or done is None:
        return None
    return RecoveryInfo(
        kind=settings.kind,
        settings=settings.resolved(),
        corpus=done.corpus,
        corpus_digest=done.corpus_digest,
        tokens=done.tokens,
        steps=done.steps,
        trained_parameters=done.trained_parameters,
        seconds=done.seconds,
        wall=done.wall,
        losses=done.losses,
    )
