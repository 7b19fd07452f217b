"""Losses of neighbouring sets, kept up step by step, against the loss of each set by itself; and searches that use them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

import methods.kernels.chosen_sets as chosen_sets
import methods.kernels.preferences as preferences
from methods.framework.inventory import Router
from methods.framework.stats import Array
from methods.kernels.neighbours import EnumeratedNeighbours
from methods.kernels.subset_loss import SubsetLoss
from methods.kernels.subset_search import TIE, Found, eliminate, exchange
from tests.methods.kernels.test_subset_loss import ROUTERS, slow_loss

EXPERTS, TOP_K, TOKENS, WIDTH = 9, 3, 24, 4
PREFERRED = ("mixtral", "olmoe", "scaled", "deepseek_v3", "sigmoid", "large eps")


def layer(
    seed: int, router: Router, target: bool = False, copies: bool = False
) -> tuple[SubsetLoss, Array, Array, Array]:
    """Return the loss of a random layer, and its outputs, logits and correction; ``copies`` makes three experts one."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(TOKENS, EXPERTS + target, WIDTH))
    logits, correction = 2.0 * rng.normal(size=(TOKENS, EXPERTS)), 0.2 * rng.normal(size=EXPERTS)
    if copies:
        outputs[:, 5:8], logits[:, 5:8], correction[5:8] = outputs[:, 5:6], logits[:, 5:6], correction[5]
    gram = outputs @ outputs.swapaxes(1, 2)
    loss = SubsetLoss(router, TOP_K, logits, gram, correction, batches=3, most_removed=6, target=target)
    return loss, outputs, logits, correction


def slow_elimination(loss: SubsetLoss, removed: int) -> Found:
    """Remove experts one by one, by the loss of every set."""
    gone: list[int] = []
    for _ in range(removed):
        rest = [e for e in range(EXPERTS) if e not in gone]
        losses = {e: loss.loss(set(rest) - {e}) for e in rest}
        least = min(losses.values())
        gone.append(max(e for e in rest if losses[e] <= least + 1e-11 * max(losses.values())))
    return Found(tuple(gone), loss.loss(set(range(EXPERTS)) - set(gone)))


def slow_exchange(loss: SubsetLoss, start: Found, sweeps: int) -> tuple[int, ...]:
    """Go through all exchanges in sweeps, by the loss of every set."""
    gone, value = list(start.removed), start.loss
    for _ in range(sweeps):
        before = value
        for place in range(len(gone)):
            partners = [e for e in range(EXPERTS) if e not in gone]
            losses = [loss.loss(set(range(EXPERTS)) - {*gone[:place], *gone[place + 1 :], e}) for e in partners]
            best = min(range(len(partners)), key=lambda i: (losses[i] > min(losses) + 1e-11 * max(losses), i))
            if losses[best] < value * (1.0 - TIE):
                gone[place], value = partners[best], losses[best]
        if value == before:
            break
    return tuple(gone)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("name", PREFERRED)
def test_neighbours_cost_what_their_sets_cost(name: str, target: bool) -> None:
    """A walk of removals and exchanges; at each set the losses around it are those of a fresh evaluation."""
    for seed in range(4):
        loss, *_ = layer(seed, ROUTERS[name], target)
        near, rng = loss.neighbours(), np.random.default_rng(seed)
        slow = EnumeratedNeighbours(loss.losses, EXPERTS)
        gone: list[int] = []
        for step in range(12):
            if step < 5:
                gone.append(int(rng.choice([e for e in range(EXPERTS) if e not in gone])))
            elif step == 8:
                gone = [int(e) for e in rng.choice(EXPERTS, 5, replace=False)]
            else:
                gone[int(rng.integers(5))] = int(rng.choice([e for e in range(EXPERTS) if e not in gone]))
            near.at(gone)
            slow.at(gone)
            rest = [e for e in reversed(range(EXPERTS)) if e not in gone]
            np.testing.assert_allclose(near.removals(rest), slow.removals(rest), rtol=1e-10)
            for back in gone:
                np.testing.assert_allclose(near.exchanges(back, rest), slow.exchanges(back, rest), rtol=1e-10)


def test_neighbours_cost_what_outputs_add_up_to() -> None:
    for name in ("mixtral", "olmoe", "deepseek_v3"):
        loss, outputs, logits, correction = layer(3, ROUTERS[name])
        near = loss.neighbours()
        near.at([2, 7])

        def slow(*removed: int, router: Router = ROUTERS[name], outputs: Array = outputs) -> float:
            return slow_loss(outputs, logits, correction, router, TOP_K, set(removed), 3)  # noqa: B023

        np.testing.assert_allclose(near.removals([0, 4]), [slow(2, 7, 0), slow(2, 7, 4)], rtol=1e-9)
        np.testing.assert_allclose(near.exchanges(7, [0, 4]), [slow(2, 0), slow(2, 4)], rtol=1e-9)


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("name", PREFERRED)
def test_searches_decide_as_plain_ones_do(name: str, copies: bool) -> None:
    for seed in range(6):
        loss, *_ = layer(seed, ROUTERS[name], copies=copies)
        expected = slow_elimination(loss, 5)
        greedy = eliminate(loss.neighbours(), 5)
        assert greedy.removed == expected.removed
        assert greedy.loss == pytest.approx(expected.loss, rel=1e-9)
        assert exchange(loss.neighbours(), greedy, 10).removed == slow_exchange(loss, greedy, 10)
        worst = Found(tuple(range(5)), loss.loss(range(5, EXPERTS)))
        for sweeps in (1, 2, 10):
            found = exchange(loss.neighbours(), worst, sweeps)
            assert found.removed == slow_exchange(loss, worst, sweeps)


@pytest.mark.parametrize("name", PREFERRED)
def test_a_copy_that_is_left_makes_a_removal_free(name: str) -> None:
    """Top-1 with copies: the second takes the whole weight, which is the same where no score of others enters it."""
    router = ROUTERS[name]
    rng = np.random.default_rng(0)
    outputs, logits = rng.normal(size=(TOKENS, 4, WIDTH)), 2.0 * rng.normal(size=(TOKENS, 4))
    outputs[:, 3], logits[:, 3] = outputs[:, 1], logits[:, 1]
    loss = SubsetLoss(router, 1, logits, outputs @ outputs.swapaxes(1, 2), np.zeros(4), batches=3)
    free, costly = loss.neighbours().removals([1, 0])
    others_enter = router.score == "softmax" and (not router.renormalise or router.eps > 0.01)
    assert (free > 1e-3) if others_enter else (free == pytest.approx(0.0, abs=1e-6))
    assert free < costly
    np.testing.assert_allclose(
        loss.neighbours().removals([3, 1]), loss.losses(np.eye(4, dtype=bool)[[3, 1]]), atol=1e-7
    )


@pytest.mark.parametrize("name", PREFERRED)
def test_what_is_remembered_of_chosen_sets_does_not_show(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Few slots push sets out all the time, and a narrow window leaves many choices beyond it."""
    rng = np.random.default_rng(1)
    sets = np.array([[expert in one for expert in range(EXPERTS)] for one in _drawn(rng, 40)])
    plain, *_ = layer(1, ROUTERS[name])
    expected = plain.losses(sets)
    np.testing.assert_array_equal(plain.losses(sets), expected)
    monkeypatch.setattr(chosen_sets, "SLOTS", 2)
    monkeypatch.setattr(chosen_sets, "WINDOW", 4)
    small, *_ = layer(1, ROUTERS[name])
    np.testing.assert_allclose(small.losses(sets), expected, rtol=1e-12)
    np.testing.assert_allclose(small.losses(sets[::-1]), expected[::-1], rtol=1e-12)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("name", PREFERRED)
def test_inner_products_that_are_not_kept_are_read_to_the_same_bits(
    name: str, target: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(3)
    sets = np.array([[expert in one for expert in range(EXPERTS)] for one in _drawn(rng, 30)])
    found = []
    for within in (100.0, 0.2):  # all of them, and those of the first two places
        monkeypatch.setattr(preferences, "WITHIN", within)
        loss, *_ = layer(2, ROUTERS[name], target)
        near = eliminate(loss.neighbours(), 4, 1)
        steps = loss.neighbours()
        steps.at([0, 5, 7])
        found.append((loss.losses(sets), near, steps.removals([1, 2]), steps.exchanges(5, [1, 3, 8])))
        assert loss._preferences is not None and loss._preferences._kept == (9 if within > 1.0 else 2)
    for whole, few in zip(*found, strict=True):
        np.testing.assert_array_equal(few, whole)


def _drawn(rng: np.random.Generator, count: int) -> Sequence[set[int]]:
    return [set(rng.choice(EXPERTS, int(rng.integers(1, 7)), replace=False).tolist()) for _ in range(count)]
