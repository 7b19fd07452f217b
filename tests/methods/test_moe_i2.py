"""MoE-I²: counts, genetic search and the choice across layers."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.framework.errors import ConfigError, RefusedError
from methods.framework.inventory import LayerInventory, Router
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.removal_allocation import removal_counts
from methods.framework.stats import Array, Stats
from methods.kernels.genetic import Bred, Breeding, breed
from methods.kernels.reception_field import reception_field
from methods.kernels.subset_loss import SubsetLoss
from methods.kernels.subset_search import best_subsets, eliminate
from methods.moe_i2 import MoEI2, by_importance
from tests.methods.test_naee import MIXTRAL, model, outputs_of, stats_of


class FakeProbe:
    """Gives each path an error, and keeps what it was asked."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self.asked: list[tuple[list[int], list[list[LayerPlan]], dict[int, LayerPlan]]] = []
        self.errors: list[Array] = []

    def block_error(
        self, layers: Sequence[int], candidates: Sequence[Sequence[LayerPlan]], decided: Mapping[int, LayerPlan]
    ) -> Array:
        self.asked.append((list(layers), [list(plans) for plans in candidates], dict(decided)))
        self.errors.append(self._rng.random([len(plans) for plans in candidates]))
        return self.errors[-1]


def stats(experts: int, layers: int, importance: Sequence[float] | None = None, seed: int = 0) -> Stats:
    """Return statistics in which layer i has ``importance[i]`` in all."""
    outputs, logits = outputs_of(experts, layers, seed)
    rng = np.random.default_rng(seed + 100)
    shares = [rng.dirichlet(np.ones(experts) * 5) for _ in range(layers)]
    sums = [1.0] * layers if importance is None else importance
    losses = [total * share for total, share in zip(sums, shares, strict=True)]
    return stats_of(outputs, logits, removal_loss=losses)


# --- counts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("importance", "total", "most", "unit", "expected"),
    [
        ([1, 1, 1], 6, [6, 6, 6], 1, [2, 2, 2]),
        ([1, 2, 4], 7, [6, 6, 6], 1, [4, 2, 1]),
        ([1, 2, 4], 7, [3, 6, 6], 1, [3, 3, 1]),  # 1 too many for the first: the other 4 go 2 : 1, as 2.67 and 1.33
        ([1, 10, 10], 12, [4, 6, 6], 1, [4, 4, 4]),
        ([1, 100, 101], 12, [4, 4, 6], 1, [4, 4, 4]),  # the second is full only once the first has passed its excess on
        ([1, 1], 3, [4, 4], 1, [2, 1]),  # equal fractions: the earlier layer
        ([0, 5, 5], 5, [6, 6, 6], 1, [5, 0, 0]),  # of no importance at all
        ([0, 0], 4, [6, 6], 1, [2, 2]),
        ([1, 2], 12, [12, 12], 4, [8, 4]),
        ([1, 3], 12, [9, 12], 4, [8, 4]),  # 9 is 2 units of 4
        ([1, 2], 0, [4, 4], 1, [0, 0]),
        ([1, 2, 3], 4, [0, 4, 4], 1, [0, 2, 2]),
    ],
)
def test_counts(importance: list[float], total: int, most: list[int], unit: int, expected: list[int]) -> None:
    assert removal_counts(importance, total, most, unit) == expected


@given(
    layers=st.lists(st.tuples(st.floats(0.0, 1e6), st.integers(0, 12)), min_size=1, max_size=8),
    share=st.floats(0.0, 1.0),
    unit=st.sampled_from([1, 2, 4]),
)
def test_counts_add_up_within_limits_and_spare_the_important(
    layers: list[tuple[float, int]], share: float, unit: int
) -> None:
    importance, most = [float(i) for i, _ in layers], [unit * m for _, m in layers]
    total = unit * int(share * sum(m for _, m in layers))
    counts = removal_counts(importance, total, most, unit)
    assert sum(counts) == total
    assert all(0 <= count <= limit and count % unit == 0 for count, limit in zip(counts, most, strict=True))
    for a, b in itertools.permutations(range(len(layers)), 2):
        if importance[a] > importance[b] and counts[b] < most[b]:  # b is less important and could lose more
            assert counts[a] <= counts[b] + unit


def test_counts_refuse_what_the_layers_cannot_spare() -> None:
    with pytest.raises(RefusedError, match="9 experts should go, but the layers can spare 8"):
        removal_counts([1, 2], 9, [4, 4])


# --- genetic search -------------------------------------------------------------------------------------------------


def subset_loss(experts: int = 8, seed: int = 0, router: Router = MIXTRAL) -> SubsetLoss:
    outputs, logits = outputs_of(experts, 1, seed)
    return SubsetLoss(router, 2, logits[0], outputs[0] @ outputs[0].swapaxes(1, 2), batches=4)


def bred(loss: SubsetLoss, removed: int, seed: int = 0, groups: int = 1, **settings: float) -> Bred:
    sizes = Breeding(**{"population": 20, "iterations": 15} | settings)  # type: ignore[arg-type]  # numbers of both kinds
    return breed(loss.losses, np.arange(loss.experts), removed, groups, sizes, np.random.default_rng(seed), count=3)


@pytest.mark.parametrize("removed", [2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_genetic_search_finds_the_optimum_of_eight(removed: int, seed: int) -> None:
    loss = subset_loss(seed=seed)
    found = bred(loss, removed, seed)
    exact = best_subsets(loss.losses, 8, removed, count=3)
    assert found.evaluated < 71
    assert found.best[0].removed == exact[0].removed
    assert found.best[0].loss == pytest.approx(exact[0].loss, rel=1e-12)


def test_genetic_search_gets_better_and_never_worse() -> None:
    loss = subset_loss(16)
    found = bred(loss, 8)
    assert all(after <= before for before, after in itertools.pairwise(found.history))
    assert found.history[-1] < found.history[0] and len(found.history) == 16
    assert found.history[-1] == found.best[0].loss


def test_genetic_search_is_deterministic_and_listens_to_its_seed() -> None:
    loss = subset_loss(16)
    one, again, other = (bred(loss, 8, seed) for seed in (0, 0, 1))
    assert one.best == again.best and one.history == again.history
    assert one.history != other.history


@pytest.mark.parametrize("mutation", [0.0, 1.0])
def test_members_are_distinct_sets_of_the_right_size(mutation: float) -> None:
    """Seventy sets and sixty members: children are often born twice, and parents soon alike."""
    found = bred(subset_loss(), 4, population=60, mutation=mutation)
    assert (found.population.sum(axis=1) == 4).all()
    assert len({row.tobytes() for row in found.population}) == 60
    assert len({one.removed for one in found.best}) == 3
    assert [one.loss for one in found.best] == sorted(one.loss for one in found.best)


def test_losses_are_computed_once_for_each_set() -> None:
    loss, seen = subset_loss(), list[bytes]()

    def counted(sets: np.ndarray) -> Array:
        seen.extend(row.tobytes() for row in sets)
        return loss.losses(sets)

    found = breed(counted, np.arange(8), 4, 1, Breeding(40, 10), np.random.default_rng(0))
    assert len(seen) == len(set(seen)) == found.evaluated


def test_groups_lose_equally_many() -> None:
    router = Router(groups=4, groups_kept=2, renormalise=True)
    found = bred(subset_loss(16, router=router), 8, groups=4)
    assert (found.population.reshape(-1, 4, 4).sum(axis=2) == 2).all()


def test_relabelling_relabels_what_is_bred() -> None:
    """Draws follow an order that moves with the labels."""
    outputs, logits = outputs_of(12, 1)
    importance = np.random.default_rng(2).random(12)
    label = np.random.default_rng(3).permutation(12)  # expert e is called label[e] afterwards
    found = []
    for order in (np.arange(12), np.argsort(label)):
        moved = outputs[0][:, order]
        loss = SubsetLoss(MIXTRAL, 2, logits[0][:, order], moved @ moved.swapaxes(1, 2))
        draws = by_importance(importance[order], 1)
        found.append(breed(loss.losses, draws, 6, 1, Breeding(10, 3), np.random.default_rng(0), 2).best)
    for before, after in zip(*found, strict=True):
        assert {int(label[e]) for e in before.removed} == set(after.removed)


def test_a_seed_set_is_never_lost() -> None:
    loss = subset_loss(16)
    greedy = eliminate(loss.neighbours(), 8)
    random, seeded = (
        breed(loss.losses, np.arange(16), 8, 1, Breeding(6, 2), np.random.default_rng(0), seeds=seeds)
        for seeds in ((), (greedy,))
    )
    assert seeded.best[0].loss <= greedy.loss * (1 + 1e-12) < random.best[0].loss


def test_order_by_importance_stays_inside_groups() -> None:
    assert by_importance(np.array([1.0, 3.0, 2.0, 2.0]), 1).tolist() == [1, 2, 3, 0]
    assert by_importance(np.array([1.0, 3.0, 2.0, 2.5]), 2).tolist() == [1, 0, 3, 2]


# --- choice across layers -------------------------------------------------------------------------------------------


def test_blocks_take_the_path_with_the_least_error() -> None:
    options = {layer: [LayerPlan(experts=(0, e)) for e in (1, 2, 3)] for layer in (1, 2, 3, 4, 5)}
    probe = FakeProbe()
    chosen = reception_field(probe, options, 3, sequential=False)
    assert [layers for layers, *_ in probe.asked] == [[1, 2, 3], [4, 5]]
    assert [errors.shape for errors in probe.errors] == [(3, 3, 3), (3, 3)]
    for (layers, plans, decided), errors in zip(probe.asked, probe.errors, strict=True):
        assert decided == {}
        path = min(itertools.product(*map(range, errors.shape)), key=lambda path: errors[path])
        assert any(path)
        assert [chosen[layer] for layer in layers] == [plans[i][path[i]] for i in range(len(layers))]


def test_sequential_blocks_see_what_was_decided_before() -> None:
    options = {layer: [LayerPlan(experts=(0, e)) for e in (1, 2)] for layer in (1, 2, 3)}
    probe = FakeProbe()
    chosen = reception_field(probe, options, 1, sequential=True)
    assert [decided for *_, decided in probe.asked] == [{}, {1: chosen[1]}, {1: chosen[1], 2: chosen[2]}]


def test_blocks_hold_the_layers_between() -> None:
    options = {layer: [LayerPlan(experts=(0, e)) for e in (1, 2)] for layer in (1, 3, 5)}
    probe = FakeProbe()
    chosen = reception_field(probe, options, 2, sequential=False)
    assert [layers for layers, *_ in probe.asked] == [[1, 2, 3], [5]]
    assert probe.asked[0][1][1] == [LayerPlan()] and sorted(chosen) == [1, 3, 5]


def test_blocks_without_a_choice_are_not_run() -> None:
    probe = FakeProbe()
    options = {1: [LayerPlan()], 2: [LayerPlan(experts=(0, 1))]}
    assert reception_field(probe, options, 2, sequential=False) == {1: LayerPlan(), 2: LayerPlan(experts=(0, 1))}
    assert probe.asked == []


# --- the method -----------------------------------------------------------------------------------------------------


def test_candidates_are_the_best_sets_of_each_layer() -> None:
    inventory, values, probe = model(6, 2), stats(6, 2), FakeProbe()
    method = MoEI2(keep=0.5, candidates=4, field=2, allocation="uniform", batches=4)
    plan = method.plan(inventory, values, probe)
    (layers, plans, _), errors = probe.asked[0], probe.errors[0]
    assert layers == [1, 2] and errors.shape == (4, 4)
    for layer, options in zip(layers, plans, strict=True):
        loss = SubsetLoss(MIXTRAL, 2, values.layer("token_logits", layer), values.layer("token_gram", layer), batches=4)
        exact = best_subsets(loss.losses, 6, 3, count=4)
        assert [set(range(6)) - set(option.experts or ()) for option in options] == [set(e.removed) for e in exact]
    best = np.unravel_index(errors.argmin(), errors.shape)
    assert [plan.layers[1], plan.layers[2]] == [plans[0][best[0]], plans[1][best[1]]]


def test_one_candidate_needs_no_probe() -> None:
    inventory, values = model(6, 2), stats(6, 2)
    method = MoEI2(candidates=1)
    assert not method.probing and MoEI2().probing
    plan = method.plan(inventory, values)
    for layer in (1, 2):
        loss = SubsetLoss(MIXTRAL, 2, values.layer("token_logits", layer), values.layer("token_gram", layer))
        kept = plan.layers[layer].experts
        assert kept is not None
        assert set(range(6)) - set(kept) == set(best_subsets(loss.losses, 6, 6 - len(kept))[0].removed)
    with pytest.raises(ConfigError, match="probe"):
        MoEI2().plan(inventory, values)


def test_keeping_everything_reads_nothing() -> None:
    inventory = model(6, 2)
    assert MoEI2(keep=1.0).plan(inventory, Stats({})) == Plan.identity(inventory)
    assert not MoEI2(keep=1.0).probing


def test_important_layers_lose_fewer() -> None:
    inventory = model(8, 3)
    method = MoEI2(keep=0.75, candidates=1)
    assert method.removals(inventory, stats(8, 3, [1.0, 2.0, 4.0])) == {1: 3, 2: 2, 3: 1}
    assert method.removals(inventory, stats(8, 3, [4.0, 1.0, 1.0])) == {1: 1, 2: 3, 3: 2}
    half = MoEI2(keep=0.5, candidates=1)
    assert half.removals(inventory, stats(8, 3, [1.0, 9.0, 9.0])) == {1: 6, 2: 3, 3: 3}  # the router needs two
    uniform = MoEI2(keep=(0.5, 1.0), candidates=1, allocation="uniform")
    assert uniform.removals(inventory, stats(8, 3, [1.0, 2.0, 4.0])) == {1: 4, 2: 2, 3: 0}


def test_importance_and_its_normalisation() -> None:
    inventory = model(8, 2)
    values = dict(stats(8, 2, [1.0, 4.0]).values)
    rng = np.random.default_rng(0)
    moments = [rng.uniform(1.0, 2.0, (8, 3, 3)) for _ in range(2)]
    moments[0][:, 0, 0], moments[1][:, 0, 0] = 10.0, 30.0
    moments[0][0, 0, 0] = moments[0][0, 1, 1] = 0.0
    values["gate_norm_moment"] = (None, *moments)
    values["routed_norm"] = (None, np.array(1.0), np.array(8.0))
    both = Stats(values)
    raw, normal = MoEI2(), MoEI2(normalise="output_norm")
    assert [raw.layer_importance(both, i) for i in (1, 2)] == pytest.approx([1.0, 4.0])
    assert [normal.layer_importance(both, i) for i in (1, 2)] == pytest.approx([1.0, 0.5])
    assert raw.removals(inventory, both)[1] > 4 > normal.removals(inventory, both)[1]
    assert [MoEI2(importance="frequency").layer_importance(both, i) for i in (1, 2)] == [70.0, 240.0]
    reap = MoEI2(importance="reap").expert_importance(both, 1)
    assert reap.tolist() == pytest.approx([0.0, *(moments[0][1:, 1, 1] / 10.0)])


def test_needs_follow_the_settings() -> None:
    base = {"token_logits", "token_gram", "router_correction"}
    assert MoEI2().needs == base | {"removal_loss"}
    assert MoEI2(importance="reap").needs == MoEI2(importance="frequency").needs == base | {"gate_norm_moment"}
    assert MoEI2(normalise="output_norm").needs == base | {"removal_loss", "routed_norm"}
    assert MoEI2(normalise="output_norm", allocation="uniform").needs == base | {"removal_loss"}


def test_depth_knots_contradict_allocation_by_importance() -> None:
    with pytest.raises(RefusedError, match=r"depth knots contradict allocation='importance'.*'uniform'"):
        MoEI2(keep=(0.5, 0.75)).plan(model(), Stats({}))


def test_large_layers_are_searched_genetically(monkeypatch: pytest.MonkeyPatch) -> None:
    inventory, values = model(16, 1), stats(16, 1)
    small = MoEI2(candidates=2, population=10, iterations=5, allocation="uniform", seeded=False)
    found = small.search(inventory, values, 1, 8)
    loss = SubsetLoss(MIXTRAL, 2, values.layer("token_logits", 1), values.layer("token_gram", 1))
    exact = best_subsets(loss.losses, 16, 8)[0]
    assert len({one.removed for one in found}) == 2 and found[0].loss > exact.loss  # 12,870 sets, fifty looked at
    large = small.model_copy(update={"population": 300, "iterations": 50})
    assert large.search(inventory, values, 1, 8)[0].removed == exact.removed
    greedy = eliminate(loss.neighbours(), 8)
    seeded = small.model_copy(update={"seeded": True}).search(inventory, values, 1, 8)
    assert seeded[0].loss <= greedy.loss * (1 + 1e-12)
    other = small.model_copy(update={"seed": 1}).search(inventory, values, 1, 8)
    assert other != found


def test_a_planted_dead_expert_goes_first() -> None:
    inventory = model(6, 1)
    outputs, logits = outputs_of(6, 1)
    logits[0][:, 3] = -40.0
    losses = np.ones(6)
    losses[3] = 0.0
    values = stats_of(outputs, logits, removal_loss=[losses])
    plan = MoEI2(keep=5 / 6).plan(inventory, values, LeastOwnError())
    assert plan.layers[1].experts == (0, 1, 2, 4, 5)


class LeastOwnError(FakeProbe):
    """Agrees with each layer on its own."""

    def block_error(
        self, layers: Sequence[int], candidates: Sequence[Sequence[LayerPlan]], decided: Mapping[int, LayerPlan]
    ) -> Array:
        return np.arange(float(np.prod([len(plans) for plans in candidates]))).reshape([len(p) for p in candidates])


def test_group_limited_routers_lose_multiples_of_groups() -> None:
    router = Router(groups=2, groups_kept=1, renormalise=True)
    inventory = model(8, 2, router)
    values = stats(8, 2, [1.0, 3.0])
    plan = MoEI2(keep=0.5, candidates=1).plan(inventory, values)
    assert [len(layer.experts or ()) for layer in plan.layers[1:]] == [4, 4]  # two in each group is the least
    plan = MoEI2(keep=0.75, candidates=1).plan(inventory, values)
    kept = [layer.experts for layer in plan.layers[1:]]
    assert [None if k is None else (sum(e < 4 for e in k), len(k)) for k in kept] == [(2, 4), None]


def test_layers_of_different_kinds_stay_in_place() -> None:
    """A dense layer between MoE layers is part of a block and keeps its plan."""
    inventory = model(6, 2)
    dense: LayerInventory = inventory.layers[0]
    inventory = replace(inventory, layers=(dense, inventory.layers[1], dense, inventory.layers[2]))
    two = stats(6, 2)
    values = Stats({name: (None, arrays[1], None, arrays[2]) for name, arrays in two.values.items()})
    probe = FakeProbe()
    plan = MoEI2().plan(inventory, values, probe)
    assert probe.asked[0][0] == [1, 2, 3]
    assert plan.layers[0] == plan.layers[2] == LayerPlan()
    assert plan.layers[1] != LayerPlan() != plan.layers[3]
