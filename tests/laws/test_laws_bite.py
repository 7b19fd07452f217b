"""Each law catches what breaks it: one broken method per law, or a broken part of the suite where the law guards that."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from bench.checkpoint.checkpoint import Checkpoint
from bench.laws import composition, decisions, realised
from bench.laws.cases import case
from bench.laws.check import LAWS, Law
from bench.laws.elsewhere import same_elsewhere
from methods.criterion import REAP
from methods.framework.errors import RefusedError
from methods.framework.inside import Sparsity
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.probe import Probe
from methods.framework.stats import Stats
from methods.registry import method_class, names
from methods.slimming import Magnitude

pytestmark = pytest.mark.thorough


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


class Shy(REAP):
    """Says that it applies, and refuses whatever it is asked to plan."""

    name: ClassVar[str] = "shy"

    def plan(self, inventory: Inventory, stats: Stats, probe: Probe | None = None) -> Plan:
        raise RefusedError("not now")


class ByHash(REAP):
    """Takes experts in the order in which their names hash, which differs from process to process."""

    name: ClassVar[str] = "by_hash"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        experts = range(inventory.layers[layer].experts)
        return LayerPlan(experts=tuple(sorted(sorted(experts, key=lambda expert: hash(f"expert {expert}"))[:8])))


class Scored(Plan):
    """A plan that says more than a plan says."""

    score: float = 0.5


class Talkative(REAP):
    """Puts into its plan what no plan holds, so that it is gone when the plan is read."""

    name: ClassVar[str] = "talkative"

    def plan(self, inventory: Inventory, stats: Stats, probe: Probe | None = None) -> Plan:
        plan = super().plan(inventory, stats)
        return Scored(family=plan.family, layers=plan.layers)


class Eraser(Magnitude):
    """Zeroes a weight in a hundred even when all should stay."""

    name: ClassVar[str] = "eraser"

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        return LayerPlan(sparsity=Sparsity(share=0.05))


class OnceOnly(REAP):
    """Refuses every model that was compressed before, though it could go on."""

    name: ClassVar[str] = "once_only"

    def refuse(self, inventory: Inventory) -> str | None:
        changed = len(inventory.layers) < 5 or any(layer.experts != 16 for layer in inventory.layers)
        return "this model was compressed before" if changed else None


class Liar(OnceOnly):
    """The same, with the words of a reason that exists elsewhere."""

    name: ClassVar[str] = "liar"

    def refuse(self, inventory: Inventory) -> str | None:
        return super().refuse(inventory) and "router rows of this model share experts already"


class Denormal(REAP):
    """Returns a plan that states what is already so."""

    name: ClassVar[str] = "denormal"

    def plan(self, inventory: Inventory, stats: Stats, probe: Probe | None = None) -> Plan:
        plan = super().plan(inventory, stats)
        layers = [layer.model_copy(update={"top_k": 2 if layer.experts else None}) for layer in plan.layers]
        return plan.model_copy(update={"layers": tuple(layers)})


CASES: list[tuple[Law, type[Method], str]] = [
    (decisions.purity, Impure, "digest"),
    (decisions.purity, Stateful, "random state"),
    (decisions.json_round_trip, Talkative, "the plan that is read is another"),
    (decisions.validity, Denormal, "normal form"),
    (decisions.budget, Spendthrift, "should remain"),
    (decisions.neutral_identity, NeverNeutral, "neutral setting changes"),
    (realised.neutral_checkpoint, NeverNeutral, "other tensors are left"),
    (realised.neutral_checkpoint, Eraser, "changed"),
    (decisions.relabelling, ByIndex, "became"),
    (decisions.needs_and_stages, Greedy, "never reads it"),
    (decisions.needs_and_stages, Trespasser, "declares"),
    (composition.composition, OnceOnly, "where nothing asks for it: once_only: this model was compressed"),
    (composition.composition, Liar, "refuses after .*, where nothing asks for it: liar: router rows"),
]


@pytest.mark.parametrize(
    ("law", "broken", "message"), CASES, ids=[f"{law.__name__}-{cls.name}" for law, cls, _ in CASES]
)
def test_law_catches(law: Law, broken: type[Method], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        law(broken, case("mixtral"))
    law(REAP, case("mixtral"))


def test_a_method_that_depends_on_the_process_is_caught_and_no_other() -> None:
    with pytest.raises(AssertionError, match=r"another process decides otherwise: by_hash$"):
        same_elsewhere([REAP, ByHash], "mixtral")


def other_expert(plan: Plan) -> Plan:
    """Return ``plan`` with another expert in the place of one that stays."""

    def changed(layer: LayerPlan) -> LayerPlan:
        if layer.experts is None:
            return layer
        gone = next(expert for expert in range(8) if expert not in layer.experts)
        return layer.model_copy(update={"experts": tuple(sorted({*layer.experts[1:], gone}))})

    return plan.model_copy(update={"layers": tuple(changed(layer) for layer in plan.layers)})


def fewer_experts(plan: Plan) -> Plan:
    """Return ``plan`` with an expert less in each layer."""
    layers = [layer.model_copy(update={"experts": layer.experts and layer.experts[1:]}) for layer in plan.layers]
    return plan.model_copy(update={"layers": tuple(layers)})


@pytest.mark.parametrize(
    ("law", "error", "message"),
    [
        (realised.cost_is_the_file, fewer_experts, "counted .* found"),
        (realised.reloads_alike, other_expert, "logits differ"),
    ],
)
def test_a_checkpoint_of_another_plan_is_caught(
    law: Law, error: Callable[[Plan], Plan], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    law(REAP, case("qwen3_moe"))
    realised._written.cache_clear()
    stock = realised.apply

    def wrong(checkpoint: Checkpoint, plan: Plan, out: Path, **rest: Any) -> Path:
        return stock(checkpoint, error(plan), out, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(realised, "apply", wrong)
        with pytest.raises(AssertionError, match=message):
            law(REAP, case("qwen3_moe"))
    realised._written.cache_clear()


def test_a_wrong_composition_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(composition, "compose", lambda first, second, inventory: first)
    with pytest.raises(AssertionError, match="after reap: not the same checkpoint"):
        composition.composition(REAP, case("mixtral"))


def test_every_law_is_shown_to_bite() -> None:
    shown = {law.__name__ for law, _, _ in CASES} | {"cost_is_the_file", "reloads_alike", "random_draws"}
    assert shown == {law.__name__ for _, law in LAWS}


def test_every_method_comes_first_somewhere() -> None:
    """A law on one method takes another first plan of each kind, so that all laws together take all."""
    here = case("mixtral")
    taken = {name: composition.firsts(method_class(name), here) for name in names()}
    assert set().union(*taken.values()) == set(names())
    assert {len(first) for first in taken.values()} == {16}, "one for each kind of plan that compose tells apart"


def test_refused_everywhere_is_caught() -> None:
    with pytest.raises(AssertionError, match="refused everywhere"):
        decisions.applies_somewhere(Picky)


def test_draws_that_all_refuse_are_caught() -> None:
    with pytest.raises(AssertionError, match="every one of twenty draws was refused"):
        decisions.random_draws(Shy, case("mixtral"))


def test_a_method_that_does_not_apply_to_a_model_is_told_as_refused_there() -> None:
    for law in (decisions.random_draws, decisions.budget, composition.composition):
        with pytest.raises(RefusedError, match="not today"):
            law(Picky, case("mixtral"))
