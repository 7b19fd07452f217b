"""NAEE and its greedy and progressive forms, against searches written as loops."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from methods.framework.allocation import expert_counts
from methods.framework.errors import ConfigError, RefusedError
from methods.framework.inventory import Inventory, Router
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.probe import LayerView
from methods.framework.stats import Array, Stats
from methods.kernels.neighbours import EnumeratedNeighbours
from methods.kernels.subset_loss import SubsetLoss
from methods.kernels.subset_search import (
    Found,
    best_subsets,
    eliminate,
    exchange,
    ranking,
    subset_count,
    subsets,
)
from methods.naee import NAEE, NAEEGreedy, NAEEProgressive
from tests.methods.kernels.test_subset_loss import slow_loss
from tests.support.inventories import toy_inventory

TOKENS, WIDTH = 40, 5
MIXTRAL = Router(renormalise=True)


def model(experts: int = 6, layers: int = 2, router: Router = MIXTRAL) -> Inventory:
    return replace(toy_inventory(experts, layers), router=router)


def outputs_of(experts: int, layers: int, seed: int = 0) -> tuple[list[Array], list[Array]]:
    """Return for each layer the experts' outputs (S, E, D) and the logits (S, E)."""
    rng = np.random.default_rng(seed)
    outputs = [rng.normal(size=(TOKENS, experts, WIDTH)) * rng.uniform(0.5, 1.5, (experts, 1)) for _ in range(layers)]
    return outputs, [1.5 * rng.normal(size=(TOKENS, experts)) for _ in range(layers)]


def stats_of(outputs: list[Array], logits: list[Array], **others: list[Array]) -> Stats:
    """Return statistics of a model whose first layer is dense."""
    corrections = [np.zeros(logit.shape[1]) for logit in logits]
    grams = [y @ y.swapaxes(1, 2) for y in outputs]
    values = {"token_logits": logits, "token_gram": grams, "router_correction": corrections, **others}
    return Stats({name: (None, *arrays) for name, arrays in values.items()}, TOKENS)


class FakeProbe:
    """Answers questions about layers from prepared views; keeps what it was asked."""

    def __init__(self, views: Mapping[int, LayerView]) -> None:
        self.views = views
        self.asked: list[tuple[int, dict[int, LayerPlan]]] = []

    def layer_view(self, layer: int, decided: Mapping[int, LayerPlan]) -> LayerView:
        self.asked.append((layer, dict(decided)))
        return self.views[layer]

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"the probe was asked for {name}")


@pytest.mark.parametrize("router", [MIXTRAL, Router()])
@pytest.mark.parametrize("keep", [0.5, 2 / 3])
def test_exhaustive_search_finds_the_best_set(router: Router, keep: float) -> None:
    inventory = model(router=router)
    outputs, logits = outputs_of(6, 2)
    plan = NAEE(keep=keep, batches=4).plan(inventory, stats_of(outputs, logits))
    gone = 6 - round(6 * keep)
    for index in (1, 2):
        losses = {
            removed: slow_loss(outputs[index - 1], logits[index - 1], np.zeros(6), router, 2, set(removed), 4)
            for removed in itertools.combinations(range(6), gone)
        }
        best = min(losses, key=lambda removed: losses[removed])
        assert plan.layers[index].experts == tuple(e for e in range(6) if e not in best)
    assert plan.layers[0] == LayerPlan()


def test_batches_are_normed_one_by_one() -> None:
    """Removing 2 errs by 3 in each of two batches, removing 3 by 5 in one: 6 > 5 in all, while 18 < 25 in squares."""
    outputs = np.zeros((2, 4, WIDTH))
    outputs[:, 2, 0] = 3.0
    outputs[0, 3, 1] = 5.0
    router = Router(score="sigmoid")  # both tokens weigh 2 and 3 by one, 0 and 1 by nothing
    logits = np.full((2, 4), -60.0)
    logits[:, 2:] = 60.0
    gram = outputs @ outputs.swapaxes(1, 2)
    for batches, losses in ((1, (18**0.5, 5.0)), (2, (6.0, 5.0))):
        loss = SubsetLoss(router, 2, logits, gram, batches=batches)
        assert (loss.loss([0, 1, 3]), loss.loss([0, 1, 2])) == pytest.approx(losses)


@pytest.mark.parametrize("cls", [NAEE, NAEEGreedy])
def test_a_planted_dead_expert_goes_first(cls: type[NAEE] | type[NAEEGreedy]) -> None:
    inventory = model(4, 2)
    outputs, logits = outputs_of(4, 2)
    logits[0][:, 2] = -40.0  # never routed to
    outputs[1][:, 1] = 0.0
    logits[1][:, 1] = -40.0
    plan = cls(keep=0.75).plan(inventory, stats_of(outputs, logits))
    assert [layer.experts for layer in plan.layers[1:]] == [(0, 1, 3), (0, 2, 3)]


@pytest.mark.parametrize("cls", [NAEE, NAEEGreedy])
def test_of_equal_experts_the_lower_index_stays(cls: type[NAEE] | type[NAEEGreedy]) -> None:
    outputs, logits = outputs_of(5, 1)
    for dead in (1, 2, 4):
        logits[0][:, dead] = -40.0
    stats = stats_of(outputs, logits)
    assert cls(keep=0.8).plan(model(5, 1), stats).layers[1].experts == (0, 1, 2, 3)
    assert cls(keep=0.6).plan(model(5, 1), stats).layers[1].experts == (0, 1, 3)


def test_of_exact_duplicates_the_lower_index_stays() -> None:
    outputs, logits = outputs_of(4, 1)
    outputs[0][:, 3], logits[0][:, 3] = outputs[0][:, 0], logits[0][:, 0]
    inventory = model(4, 1)
    inventory = inventory.with_layers((inventory.layers[0], replace(inventory.layers[1], top_k=1)))
    plan = NAEE(keep=0.75).plan(inventory, stats_of(outputs, logits))
    assert plan.layers[1].experts == (0, 1, 2)


def test_subsets_are_all_there_once_in_order() -> None:
    found = subsets(6, 2)
    kept = [tuple(np.flatnonzero(~row)) for row in found]
    assert kept == list(itertools.combinations(range(6), 4)) and len(found) == subset_count(6, 2)
    grouped = [tuple(np.flatnonzero(~row)) for row in subsets(6, 2, 2)]
    assert grouped == [kept for kept in itertools.combinations(range(6), 4) if sum(e < 3 for e in kept) == 2]
    assert len(grouped) == subset_count(6, 2, 2) == 9


def test_ranking_takes_rounding_for_equality() -> None:
    assert ranking(np.array([3.0, 1.0 + 1e-15, 1.0, 2.0])).tolist() == [1, 2, 3, 0]
    assert ranking(np.zeros(3)).tolist() == [0, 1, 2]


def test_too_many_sets_are_refused_before_anything_is_read() -> None:
    inventory = model(64)
    for method in (NAEE(keep=0.75), NAEEProgressive(keep=0.75)):
        with pytest.raises(RefusedError, match=r"4.89e\+14 ways to remove 16 of the 64 experts.*naee_greedy"):
            method.plan(inventory, Stats({}))
    with pytest.raises(RefusedError, match="naee_greedy"):
        NAEE(keep=0.75).decide_layer(inventory, Stats({}), 1)
    assert NAEE(keep=63 / 64).refuse(inventory) is None


def test_depth_knots() -> None:
    inventory = model(6, 3)
    outputs, logits = outputs_of(6, 3)
    for cls in (NAEE, NAEEGreedy):
        plan = cls(keep=(1.0, 0.5)).plan(inventory, stats_of(outputs, logits))
        counts = [6 if layer.experts is None else len(layer.experts) for layer in plan.layers[1:]]
        assert counts == list(expert_counts(inventory, (1.0, 0.5)).values()) == [6, 5, 3]


def test_keeping_everything_is_the_identity() -> None:
    inventory = model()
    for method in (NAEE(keep=1.0), NAEEGreedy(keep=1.0), NAEEProgressive(keep=1.0)):
        assert method.plan(inventory, Stats({})) == Plan.identity(inventory)
        assert not method.probing


def test_group_limited_routers_lose_equally_many_in_each_group() -> None:
    router = Router(groups=2, groups_kept=1, renormalise=True)
    outputs, logits = outputs_of(8, 2)
    stats = stats_of(outputs, logits)
    inventory = model(8, 2, router)
    exact, greedy = NAEE(keep=0.5).plan(inventory, stats), NAEEGreedy(keep=0.5).plan(inventory, stats)
    for plan in (exact, greedy):
        assert all(sum(e < 4 for e in layer.experts or ()) == 2 for layer in plan.layers[1:])
    for index in (1, 2):
        losses = {
            kept: slow_loss(outputs[index - 1], logits[index - 1], np.zeros(8), router, 2, {*range(8)} - {*kept}, 16)
            for kept in itertools.combinations(range(8), 4)
            if sum(e < 4 for e in kept) == 2
        }
        assert exact.layers[index].experts == min(losses, key=lambda kept: losses[kept])


def slow_elimination(loss: SubsetLoss, experts: int, removed: int) -> list[int]:
    gone: list[int] = []
    for _ in range(removed):
        rest = [e for e in range(experts) if e not in gone]
        gone.append(min(rest, key=lambda e: loss.loss(set(rest) - {e})))
    return gone


@pytest.mark.parametrize("seed", range(4))
def test_elimination_and_exchange(seed: int) -> None:
    outputs, logits = outputs_of(10, 1, seed)
    loss = SubsetLoss(MIXTRAL, 2, logits[0], outputs[0] @ outputs[0].swapaxes(1, 2))
    greedy = eliminate(loss.neighbours(), 5)
    assert list(greedy.removed) == slow_elimination(loss, 10, 5)
    assert greedy.loss == pytest.approx(loss.loss(set(range(10)) - set(greedy.removed)), rel=1e-12)
    swapped = exchange(loss.neighbours(), greedy, sweeps=20)
    exact = best_subsets(loss.losses, 10, 5)[0]
    assert exact.loss <= swapped.loss * (1 + 1e-12) and swapped.loss <= greedy.loss
    assert swapped.loss == pytest.approx(loss.loss(set(range(10)) - set(swapped.removed)), rel=1e-12)
    kept = set(range(10)) - set(swapped.removed)
    for back, out in itertools.product(swapped.removed, kept):  # no single exchange helps any more
        assert loss.loss(kept - {out} | {back}) >= swapped.loss * (1 - 1e-9)
    assert exchange(loss.neighbours(), greedy, sweeps=0) == greedy


def test_exchange_mends_a_bad_start() -> None:
    """Costs are additive, so exchanges alone reach the optimum from the worst set."""
    cost = np.array([5.0, 1.0, 4.0, 2.0, 6.0, 3.0])
    found = exchange(EnumeratedNeighbours(lambda sets: sets @ cost, 6), Found((0, 2, 4), 15.0), sweeps=5)
    assert sorted(found.removed) == [1, 3, 5] and found.loss == 6.0
    inside = exchange(EnumeratedNeighbours(lambda sets: sets @ cost, 6), Found((0, 4), 11.0), sweeps=5, groups=2)
    assert sorted(inside.removed) == [1, 3] and inside.loss == 3.0


def test_greedy_is_not_worse_with_sweeps() -> None:
    inventory = model(10, 1)
    for seed in range(3):
        outputs, logits = outputs_of(10, 1, seed)
        stats = stats_of(outputs, logits)
        loss = SubsetLoss(MIXTRAL, 2, logits[0], outputs[0] @ outputs[0].swapaxes(1, 2))
        plain, swept = (NAEEGreedy(sweeps=n).plan(inventory, stats).layers[1].experts for n in (0, 10))
        assert plain is not None and swept is not None
        assert loss.loss(swept) <= loss.loss(plain)
        assert set(plain) == set(range(10)) - set(slow_elimination(loss, 10, 5))


def view_of(outputs: Array, logits: Array, target: Array) -> LayerView:
    stacked = np.concatenate([outputs, target[:, None]], axis=1)
    return LayerView(logits, stacked @ stacked.swapaxes(1, 2))


def test_progressive_search_follows_the_probe() -> None:
    inventory = model(5, 2)
    outputs, logits = outputs_of(5, 2)
    rng = np.random.default_rng(8)
    targets = [rng.normal(size=(TOKENS, WIDTH)) for _ in range(2)]
    views = {layer: view_of(outputs[layer - 1], logits[layer - 1], targets[layer - 1]) for layer in (1, 2)}
    probe = FakeProbe(views)
    stats = Stats({"router_correction": (None, np.zeros(5), np.zeros(5))})
    plan = NAEEProgressive(keep=0.6, batches=1).plan(inventory, stats, probe)
    for layer in (1, 2):
        best, least = (), np.inf
        for kept in itertools.combinations(range(5), 3):
            masked = np.full((TOKENS, 5), -np.inf)
            masked[:, kept] = logits[layer - 1][:, kept]
            weights = np.exp(masked)
            weights[np.arange(TOKENS), masked.argsort(axis=1)[:, -3]] = 0.0  # of three survivors two are chosen
            weights /= weights.sum(axis=1, keepdims=True)
            error = np.linalg.norm(targets[layer - 1] - np.einsum("se,sed->sd", weights, outputs[layer - 1]))
            if error < least:
                best, least = kept, error
        assert plan.layers[layer].experts == best
    assert probe.asked == [(1, {}), (2, {1: plan.layers[1]})]


def test_progressive_search_needs_a_probe() -> None:
    with pytest.raises(ConfigError, match="probe"):
        NAEEProgressive().plan(model(), Stats({}))


def test_progressive_search_skips_layers_that_stay() -> None:
    inventory = model(4, 3)
    outputs, logits = outputs_of(4, 3)
    target = [np.zeros((TOKENS, WIDTH))] * 3
    probe = FakeProbe({i: view_of(outputs[i - 1], logits[i - 1], target[i - 1]) for i in (1, 2, 3)})
    stats = Stats({"router_correction": (None, *[np.zeros(4)] * 3)})
    plan = NAEEProgressive(keep=(1.0, 0.5)).plan(inventory, stats, probe)
    assert [layer for layer, _ in probe.asked] == [2, 3] and plan.layers[1] == LayerPlan()
