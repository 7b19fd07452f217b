"""Each law catches a method that breaks it: one broken method per law."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest

from bench.laws import decisions
from bench.laws.cases import case
from methods.criterion import REAP
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import Stats


class Impure(REAP):
    """Draws from the global random state."""

    name: ClassVar[str] = "impure"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        return LayerPlan(experts=tuple(sorted(np.random.permutation(inventory.layers[layer].experts)[:8].tolist())))


class Stateful(REAP):
    """Leaves the random state of the process changed, though its plan is the same."""

    name: ClassVar[str] = "stateful"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        np.random.random()
        return super().decide_layer(inventory, stats, layer)


class Spendthrift(REAP):
    """Keeps two experts too many."""

    name: ClassVar[str] = "spendthrift"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        experts = inventory.layers[layer].experts
        return LayerPlan(experts=tuple(range(min(experts, int(experts * float(self.keep)) + 2))))  # type: ignore[arg-type]  # no knots here


class NeverNeutral(REAP):
    """Drops an expert even when all should stay."""

    name: ClassVar[str] = "never_neutral"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        return LayerPlan(experts=tuple(range(inventory.layers[layer].experts - inventory.router.groups)))


class ByIndex(REAP):
    """Prefers low indices, whatever the statistics say."""

    name: ClassVar[str] = "by_index"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        return LayerPlan(experts=tuple(range(inventory.layers[layer].experts // 2)))


class Greedy(REAP):
    """Declares a statistic that it never reads."""

    name: ClassVar[str] = "greedy"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"gate_norm_moment", "block_cosine"})


class Trespasser(REAP):
    """Writes a stage that it does not declare."""

    name: ClassVar[str] = "trespasser"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        stats.layer("gate_norm_moment", layer)
        return LayerPlan(drop="moe")


class Picky(REAP):
    """Refuses every model."""

    name: ClassVar[str] = "picky"

    def refuse(self, inventory: Inventory) -> str | None:
        return "not today"


class Denormal(REAP):
    """Returns a plan that states what is already so."""

    name: ClassVar[str] = "denormal"

    def plan(self, inventory: Inventory, stats: Stats, probe: Probe | None = None) -> Plan:
        plan = super().plan(inventory, stats)
        layers = [layer.model_copy(update={"top_k": 2 if layer.experts else None}) for layer in plan.layers]
        return plan.model_copy(update={"layers": tuple(layers)})


@pytest.mark.parametrize(
    ("law", "broken", "message"),
    [
        ("purity", Impure, "digest"),
        ("purity", Stateful, "random state"),
        ("validity", Denormal, "normal form"),
        ("budget", Spendthrift, "should remain"),
        ("neutral_identity", NeverNeutral, "neutral setting changes"),
        ("relabelling", ByIndex, "became"),
        ("needs_and_stages", Greedy, "never reads it"),
        ("needs_and_stages", Trespasser, "declares"),
    ],
)
def test_law_catches(law: str, broken: type[Method], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        getattr(decisions, law)(broken, case("mixtral"))
    intact: Any = getattr(decisions, law)
    intact(REAP, case("mixtral"))


def test_refused_everywhere_is_caught() -> None:
    with pytest.raises(AssertionError, match="refused everywhere"):
        decisions.applies_somewhere(Picky)


def test_draws_that_all_refuse_are_caught() -> None:
    from methods.framework.errors import RefusedError

    with pytest.raises((AssertionError, RefusedError), match="refused"):
        decisions.random_draws(Picky, case("mixtral"))
