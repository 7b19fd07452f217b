"""Parts of a record, made from what the stages of a run leave."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from bench.records.record import CostInfo, RatioInfo, RecoveryInfo
from bench.settings.recovery import RecoverySettings
from methods.framework.cost import Cost, cost, cost_of, ratios, zeros
from methods.framework.inventory import Inventory
from methods.framework.plan import Plan

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
