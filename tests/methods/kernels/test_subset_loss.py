"""The subset loss against experts' outputs that are really added up, token by token, in loops."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import methods.kernels.chosen_sets as chosen_sets
import methods.kernels.gate_change as gate_change
import methods.kernels.preferences as preferences
import methods.kernels.subset_loss as subset_loss
from bench.calibration.calibrate import calibrate
from bench.checkpoint.checkpoint import Checkpoint
from bench.probing.model_probe import ModelProbe
from bench.text.corpus import Corpus
from methods.framework.errors import RefusedError
from methods.framework.inventory import Router
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import Array
from methods.kernels.chosen_sets import ChosenSets
from methods.kernels.gate_change import ordered_by_preference
from methods.kernels.preferences import Preferences
from methods.kernels.subset_loss import SubsetLoss
from tests.support.tiny import FAMILIES, tiny_checkpoint, tiny_tokens

TOKENS, EXPERTS, WIDTH, TOP_K = 30, 8, 5, 3

ROUTERS = {
    "mixtral": Router(renormalise=True),
    "olmoe": Router(),
    "scaled": Router(scale=2.5),
    "deepseek_v3": Router(score="sigmoid", renormalise=True, scale=2.0, correction_bias=True, eps=1e-20),
    "sigmoid": Router(score="sigmoid"),
    "large eps": Router(renormalise=True, eps=0.3),
    "biased softmax": Router(correction_bias=True, renormalise=True),
    "groups": Router(groups=2, groups_kept=1),
    "groups, renormalised": Router(groups=4, groups_kept=2, renormalise=True),
    "groups, top2_sum": Router(
        "sigmoid", True, scale=2.5, groups=2, groups_kept=1, group_score="top2_sum", correction_bias=True, eps=1e-20
    ),
}


def weights_of(
    logits: list[float], correction: list[float], router: Router, top_k: int, removed: set[int]
) -> list[float]:
    """Return the weight of each expert for one token, 0 unless it is chosen."""
    alive = [e for e in range(len(logits)) if e not in removed]
    if router.score == "softmax":
        total = sum(np.exp(logits[e]) for e in alive)
        scores = {e: float(np.exp(logits[e]) / total) for e in alive}
    else:
        scores = {e: float(1 / (1 + np.exp(-logits[e]))) for e in alive}
    choice = {e: scores[e] + (correction[e] if router.correction_bias else 0.0) for e in alive}
    size = len(logits) // router.groups
    ranks = []
    for group in range(router.groups):
        inside = sorted((choice[e] for e in alive if e // size == group), reverse=True)
        ranks.append(inside[0] if router.group_score == "max" else inside[0] + inside[1])
    best = sorted(range(router.groups), key=lambda g: -ranks[g])[: router.groups_kept]
    allowed = sorted((e for e in alive if e // size in best), key=lambda e: -choice[e])
    chosen = allowed[:top_k]
    share = sum(scores[e] for e in chosen) + router.eps if router.renormalise else 1.0
    return [router.scale * scores[e] / share if e in chosen else 0.0 for e in range(len(logits))]


def slow_loss(
    outputs: Array, logits: Array, correction: Array, router: Router, top_k: int, removed: set[int], batches: int
) -> float:
    """Return the sum over batches of the norm of the difference of real outputs."""
    squares = []
    for token in range(len(logits)):
        row, bias = logits[token].tolist(), correction.tolist()
        before, after = np.zeros(outputs.shape[2]), np.zeros(outputs.shape[2])
        for expert, weight in enumerate(weights_of(row, bias, router, top_k, set())):
            before += weight * outputs[token, expert]
        for expert, weight in enumerate(weights_of(row, bias, router, top_k, removed)):
            after += weight * outputs[token, expert]
        squares.append(float(((before - after) ** 2).sum()))
    bounds = [len(squares) * part // batches for part in range(batches + 1)]
    return sum(sum(squares[low:high]) ** 0.5 for low, high in pairwise(bounds))


def layer(seed: int = 0, tokens: int = TOKENS) -> tuple[Array, Array, Array, Array]:
    """Return outputs (S, E, D), Gram (S, E, E), logits (S, E) and correction (E,)."""
    rng = np.random.default_rng(seed)
    outputs = rng.normal(size=(tokens, EXPERTS, WIDTH))
    logits = 2.0 * rng.normal(size=(tokens, EXPERTS))
    return outputs, outputs @ outputs.swapaxes(1, 2), logits, rng.normal(size=EXPERTS) * 0.3


def sets(router: Router, seed: int = 1) -> list[set[int]]:
    """Return sets to remove: of several sizes, or equally many of each group."""
    rng = np.random.default_rng(seed)
    size = EXPERTS // router.groups
    if router.groups > 1:
        return [{group * size + int(rng.integers(size)) for group in range(router.groups)} for _ in range(5)]
    return [set(rng.choice(EXPERTS, count, replace=False).tolist()) for count in (1, 1, 2, 3, 4, 5)]


def masks(removed: list[set[int]], experts: int = EXPERTS) -> np.ndarray:
    return np.array([[expert in one for expert in range(experts)] for one in removed])


@pytest.mark.parametrize("batches", [1, 4, 16])
@pytest.mark.parametrize("name", ROUTERS)
def test_equals_outputs_that_are_added_up(name: str, batches: int) -> None:
    router = ROUTERS[name]
    top_k = 2 if router.groups > 1 else TOP_K
    outputs, gram, logits, correction = layer()
    removed = sets(router)
    loss = SubsetLoss(router, top_k, logits, gram, correction, batches=batches)
    expected = [slow_loss(outputs, logits, correction, router, top_k, one, batches) for one in removed]
    assert min(expected) > 0.01
    np.testing.assert_allclose(loss.losses(masks(removed)), expected, rtol=1e-9)
    kept = set(range(EXPERTS)) - removed[0]
    assert loss.loss(kept) == pytest.approx(expected[0], rel=1e-9)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("name", ["mixtral", "olmoe", "deepseek_v3"])
def test_both_ways_of_changing_weights_agree(name: str, target: bool) -> None:
    router = ROUTERS[name]
    outputs, gram, logits, correction = layer()
    if target:
        outputs = np.concatenate([outputs, np.random.default_rng(5).normal(size=(TOKENS, 1, WIDTH))], axis=1)
        gram = outputs @ outputs.swapaxes(1, 2)
    removed = masks(sets(router))
    fast = ChosenSets(Preferences(router, TOP_K, logits, gram, correction, EXPERTS, target))
    slow = gate_change.RoutedGateChange(router, TOP_K, logits, gram, correction, target=target)
    np.testing.assert_allclose(fast.squares(removed), slow.squares(removed), rtol=1e-9, atol=1e-12)


def test_which_routers_rank_experts_alike_after_a_removal() -> None:
    slow = {name for name, router in ROUTERS.items() if not ordered_by_preference(router)}
    assert slow == {"biased softmax", "groups", "groups, renormalised", "groups, top2_sum"}


@pytest.mark.parametrize("name", ["mixtral", "deepseek_v3", "groups, renormalised"])
def test_an_expert_that_nobody_chooses_costs_exactly_nothing(name: str) -> None:
    router = ROUTERS[name]
    _, gram, logits, correction = layer()
    logits[:, 3], correction[3] = -30.0, -1.0
    loss = SubsetLoss(router, 2, logits, gram, correction)
    removed = {3} if router.groups == 1 else {1, 3, 5, 7}
    found = loss.losses(masks([removed, {1, 5, 7}]))
    assert loss.loss(set(range(EXPERTS)) - {3}) == 0.0
    assert found[1] > 0.1
    if router.groups > 1:  # the dead expert adds nothing to what the others cost
        assert found[0] == found[1]


@pytest.mark.parametrize("name", ["olmoe", "groups"])
def test_without_renormalising_an_expert_that_nobody_chooses_still_has_a_price(name: str) -> None:
    outputs, gram, logits, correction = layer()
    logits[:, 3] = logits.min(axis=1) - 0.5
    loss = SubsetLoss(ROUTERS[name], 2, logits, gram, correction)
    found = loss.loss(set(range(EXPERTS)) - {3})
    assert found == pytest.approx(slow_loss(outputs, logits, correction, ROUTERS[name], 2, {3}, 16), rel=1e-9)
    assert found > 1e-3


@pytest.mark.parametrize("name", ROUTERS)
def test_removing_nothing_changes_nothing_to_the_last_bit(name: str) -> None:
    _, gram, logits, correction = layer()
    assert SubsetLoss(ROUTERS[name], 2, logits, gram, correction).loss(range(EXPERTS)) == 0.0


def test_one_copy_of_a_duplicate_is_free_where_the_other_takes_over() -> None:
    """Top-1: the copy has the whole weight. Both copies at once are not free."""
    outputs, _, logits, _ = layer()
    outputs[:, 5], logits[:, 5] = outputs[:, 2], logits[:, 2]
    gram = outputs @ outputs.swapaxes(1, 2)
    loss = SubsetLoss(Router(renormalise=True), 1, logits, gram)
    one, other, both = loss.losses(masks([{2}, {5}, {2, 5}]))
    assert one == pytest.approx(0.0, abs=1e-6) and other == 0.0
    assert both == pytest.approx(slow_loss(outputs, logits, np.zeros(8), Router(renormalise=True), 1, {2, 5}, 16))
    assert both > 1.0


def test_one_copy_of_a_duplicate_costs_what_the_third_choice_brings_in() -> None:
    """Top-2: a token on both copies loses one and takes its third choice c in, by a weight of p_c / (p + p_c)."""
    logits = np.array([[1.0, 1.0, -1.0, -3.0]])
    outputs = np.random.default_rng(0).normal(size=(1, 4, WIDTH))
    outputs[:, 1] = outputs[:, 0]
    loss = SubsetLoss(Router(renormalise=True), 2, logits, outputs @ outputs.swapaxes(1, 2))
    share = np.exp(-1.0) / (np.exp(1.0) + np.exp(-1.0))
    expected = share * np.linalg.norm(outputs[0, 0] - outputs[0, 2])
    np.testing.assert_allclose(loss.losses(masks([{0}, {1}], 4)), expected, rtol=1e-12)


def test_fewer_survivors_than_top_k() -> None:
    outputs, gram, logits, correction = layer()
    for name in ("mixtral", "olmoe"):
        loss = SubsetLoss(ROUTERS[name], TOP_K, logits, gram)
        expected = slow_loss(outputs, logits, correction, ROUTERS[name], TOP_K, set(range(6)), 16)
        assert loss.loss([6, 7]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["mixtral", "olmoe", "groups, renormalised"])
def test_counts_from_a_target(name: str) -> None:
    """On other states than those that made the target, nothing is exactly zero, and removals may even help."""
    router = ROUTERS[name]
    outputs, _, logits, correction = layer()
    target = np.random.default_rng(5).normal(size=(TOKENS, 1, WIDTH))
    with_target = np.concatenate([outputs, target], axis=1)
    gram = with_target @ with_target.swapaxes(1, 2)
    loss = SubsetLoss(router, 2, logits, gram, correction, batches=4, target=True)
    removed = [set(), *sets(router)]
    expected = []
    for one in removed:
        rows = [weights_of(row.tolist(), correction.tolist(), router, 2, one) for row in logits]
        squares = ((target[:, 0] - np.einsum("se,sed->sd", np.array(rows), outputs)) ** 2).sum(axis=1)
        bounds = [0, 7, 15, 22, 30]
        expected.append(sum(squares[a:b].sum() ** 0.5 for a, b in pairwise(bounds)))
    np.testing.assert_allclose(loss.losses(masks(removed)), expected, rtol=1e-9)


def test_pieces_of_tokens_and_candidates_do_not_show(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _, gram, logits, _ = layer()
    mapped = np.memmap(tmp_path / "gram", np.float32, "w+", shape=gram.shape)
    mapped[:] = gram
    removed = masks([set(one) for one in ({1}, {2, 3}, {4, 5, 6}, {0}, {7})])
    whole = SubsetLoss(Router(), TOP_K, logits, mapped).losses(removed)
    monkeypatch.setattr(preferences, "GRAM_PIECE", 3 * EXPERTS**2)
    monkeypatch.setattr(preferences, "PAIRS_PIECE", 2)
    monkeypatch.setattr(subset_loss, "CANDIDATES_PIECE", 2)
    monkeypatch.setattr(chosen_sets, "PIECE", 5)
    monkeypatch.setattr(chosen_sets, "EVALUATED", 3)
    np.testing.assert_allclose(SubsetLoss(Router(), TOP_K, logits, mapped).losses(removed), whole, rtol=1e-13)
    exact = SubsetLoss(Router(), TOP_K, logits, gram).losses(removed)
    np.testing.assert_allclose(whole, exact, rtol=1e-5)


def test_places_that_no_candidate_can_reach_are_left_out() -> None:
    _, gram, logits, _ = layer()
    removed = masks([{0, 1}, {6, 7}])
    few = SubsetLoss(Router(), TOP_K, logits, gram, most_removed=2)
    np.testing.assert_allclose(
        few.losses(removed), SubsetLoss(Router(), TOP_K, logits, gram).losses(removed), rtol=1e-12
    )


def test_never_negative_under_the_root() -> None:
    """Inner products of near copies, rounded to float32, give squares below zero."""
    rng = np.random.default_rng(3)
    outputs = rng.normal(size=(200, 1, WIDTH)) + 1e-5 * rng.normal(size=(200, 4, WIDTH))
    gram = (outputs @ outputs.swapaxes(1, 2)).astype(np.float32)
    logits = rng.normal(size=(200, 4))
    change, pieces = gate_change.RoutedGateChange(Router(renormalise=True), 1, logits, gram, None, target=False).of(
        np.arange(200), masks([{0}], 4)
    )
    assert (np.einsum("sxc,sxy,syc->sc", change, pieces, change) < 0).any()
    assert np.isfinite(SubsetLoss(Router(renormalise=True), 1, logits, gram).losses(masks([{0}], 4))).all()


def test_relabelling_experts_relabels_losses() -> None:
    _, gram, logits, correction = layer()
    order = np.random.default_rng(9).permutation(EXPERTS)
    for name in ("mixtral", "olmoe", "deepseek_v3"):
        removed = masks(sets(ROUTERS[name]))
        before = SubsetLoss(ROUTERS[name], TOP_K, logits, gram, correction).losses(removed)
        relabelled = SubsetLoss(ROUTERS[name], TOP_K, logits[:, order], gram[:, order][:, :, order], correction[order])
        np.testing.assert_allclose(relabelled.losses(removed[:, order]), before, rtol=1e-12)


def test_candidates_that_were_not_prepared_for_are_errors() -> None:
    _, gram, logits, correction = layer()
    loss = SubsetLoss(Router(), TOP_K, logits, gram, most_removed=2)
    with pytest.raises(ValueError, match="3 of 8"):
        loss.loss(range(5))
    with pytest.raises(ValueError, match="8 of 8"):
        SubsetLoss(Router(), TOP_K, logits, gram).loss([])
    groups = SubsetLoss(ROUTERS["groups, top2_sum"], 2, logits, gram, correction)
    with pytest.raises(RefusedError, match="leaves 1 in one of the router's 2 groups, and each needs 2"):
        groups.loss([0, 4, 5, 6])


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_what_the_sliced_model_does(family: str, tmp_path: Path) -> None:
    """Measured statistics, and the probe's runs of each layer with experts taken out."""
    checkpoint = Checkpoint.open(tiny_checkpoint(family, tmp_path / "model"))
    corpus, inventory = Corpus.of(tiny_tokens(), "random ids"), checkpoint.inventory
    needs = {"token_logits", "token_gram", "router_correction"}
    stats = calibrate(checkpoint, corpus, needs, sampled_tokens=corpus.tokens, dtype="float64")
    probe = ModelProbe(checkpoint, corpus, tokens=corpus.tokens, dtype="float64")
    index = inventory.moe_layers[-1]
    found = inventory.layers[index]
    size = found.experts // inventory.router.groups
    last = [group * size + size - 1 for group in range(inventory.router.groups)]
    first = [group * size for group in range(inventory.router.groups)]
    plans = [LayerPlan(experts=tuple(e for e in range(found.experts) if e not in gone)) for gone in (first, last)]
    errors = probe.layer_error(index, plans, {})
    loss = SubsetLoss(
        inventory.router,
        found.top_k,
        stats.layer("token_logits", index),
        stats.layer("token_gram", index),
        stats.layer("router_correction", index),
        batches=1,
    )
    assert [loss.loss(plan.experts or ()) for plan in plans] == pytest.approx(errors.tolist(), rel=1e-4)
    assert min(errors) > 0.0
