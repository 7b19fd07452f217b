"""Decisions of the methods that factor experts: budgets, ranks by hand, what they read and what they refuse."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from bench.laws.cases import case, synthetic_stats
from methods.d2_moe import D2MoE, fisher_weights
from methods.framework.cost import cost, cost_of
from methods.framework.errors import RefusedError, StatsError
from methods.framework.inside import SharedBase
from methods.framework.inventory import EXPERT_ROLES, Inventory
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.stats import Array, Stats
from methods.framework.transfer import result
from methods.kernels.ranks import importance_weights
from methods.low_rank import SVD, Factoring, WhitenedSVD
from methods.mobe import MoBE, Sizes

OLMOE = case("olmoe")  # 5 MoE layers of 16 experts, hidden 64, width 32
DEEPSEEK = case("deepseek_v2")  # its first layer is dense
ONE_RANK = 64 + 32
LAYER = 16 * 3 * 64 * 32


def routed(plan: Plan, inventory: Inventory = OLMOE.inventory) -> int:
    return cost(plan, inventory).routed_parameters


def decided(method: Method, stats: Stats = OLMOE.stats, inventory: Inventory = OLMOE.inventory) -> Plan:
    return method.plan(inventory, stats)


def ranks_of(plan: Plan, layer: int) -> Array:
    rank = plan.layers[layer].rank
    assert rank is not None
    return np.asarray(rank.ranks, dtype=np.float64)


FACTORINGS = [
    cls(ranks=ranks, importance=importance)
    for cls in (SVD, WhitenedSVD)
    for ranks in ("uniform", "importance", "spectrum")
    for importance in ("removal_loss", "frequency", "reap")
    if ranks == "importance" or importance == "removal_loss"
]


def label(method: Factoring) -> str:
    return f"{method.name}-{method.ranks}-{method.importance}"


@pytest.mark.parametrize("method", FACTORINGS, ids=label)
def test_budget_of_the_model_is_met_within_one_rank(method: Factoring) -> None:
    before = 5 * LAYER
    for keep in (0.1, 0.25, 0.5, 0.77, 0.95):
        found = routed(decided(method.model_copy(update={"keep": keep})))
        assert keep * before - ONE_RANK < found <= keep * before


@pytest.mark.parametrize("method", FACTORINGS, ids=label)
def test_what_is_needed_is_read_and_nothing_else(method: Factoring) -> None:
    assert decided(method, OLMOE.stats.only(method.needs)) == decided(method)
    for need in method.needs:
        with pytest.raises(StatsError, match=need):
            method.plan(OLMOE.inventory, OLMOE.stats.only(method.needs - {need}))


@pytest.mark.parametrize("cls", [SVD, WhitenedSVD])
def test_whole_matrices_make_the_identity_and_read_no_moments(cls: type[Factoring]) -> None:
    for keep in (1.0, (1.0, 1.0)):
        method = cls.configured({"keep": keep})
        assert decided(method) == Plan.identity(OLMOE.inventory) and method.moments == frozenset()


def test_moments_are_those_of_the_plan() -> None:
    for method in (SVD(), WhitenedSVD(), D2MoE(), D2MoE(columns=0.5), MoBE()):
        assert decided(method).moments == method.moments
    assert SVD().moments == frozenset() and "input_gram" in WhitenedSVD().moments & D2MoE().moments


def test_what_is_left_over_goes_to_the_busiest_experts() -> None:
    plan = decided(WhitenedSVD(keep=0.52))
    spreads = []
    for layer in range(5):
        of_expert = ranks_of(plan, layer).sum(axis=1)
        by_tokens = of_expert[np.argsort(-OLMOE.stats.layer("routed_tokens", layer))]
        assert (np.diff(by_tokens) <= 0).all()
        spreads.append(by_tokens[0] - by_tokens[-1])
    assert max(spreads) > 0


def test_depth_knots_give_each_layer_its_own_budget() -> None:
    for method in (SVD(keep=(0.25, 1.0)), WhitenedSVD(keep=(0.25, 1.0)), SVD(keep=(0.25, 1.0), ranks="uniform")):
        plan = decided(method)
        assert plan.layers[4].rank is None
        for layer, share in enumerate((0.25, 0.4375, 0.625, 0.8125)):
            found = sum(
                entry.parameters
                for entry in result(plan, OLMOE.inventory).layers[layer].tensors
                if entry.expert is not None
            )
            assert share * LAYER - ONE_RANK < found <= share * LAYER


def test_dense_layers_stay_as_they_are() -> None:
    for method in (SVD(), WhitenedSVD(), D2MoE(), MoBE()):
        layers = method.plan(DEEPSEEK.inventory, DEEPSEEK.stats).layers
        assert not layers[0].stages and all(layer.stages == {"rank"} for layer in layers[1:])


def test_ranks_follow_importance_inside_a_layer() -> None:
    plan = decided(SVD(alpha=1.0))
    for layer in range(5):
        importance = OLMOE.stats.layer("removal_loss", layer)
        ranks = ranks_of(plan, layer)
        whole = np.where(ranks == 0, 22, ranks)  # 64 x 32 is whole at rank 22
        order = np.argsort(importance)
        assert (np.diff(whole[order, 1]) >= 0).all() and np.ptp(whole, axis=1).max() <= 1
    flat = decided(SVD(alpha=0.0))
    assert np.ptp(np.concatenate([ranks_of(flat, layer) for layer in range(5)])) <= 1
    assert {layer.rank.kernel for layer in plan.layers if layer.rank} == {"svd"}


def test_ranks_are_the_formula_of_the_paper() -> None:
    """One R_a for the whole model; every rank is the floor of its share, or one more where R_a is the next rank exactly."""
    plan = decided(SVD(alpha=0.15))
    ranks = np.stack([ranks_of(plan, layer) for layer in range(5)])
    assert ranks.min() > 0
    weights = np.stack([importance_weights(OLMOE.stats.layer("removal_loss", layer), 0.15) for layer in range(5)])
    low = (ranks.min(axis=2) / weights).max()
    high = ((ranks.min(axis=2) + 1) / weights).min()
    assert low < high  # so that floor(weights * R_a) are the ranks for any R_a between
    powers = OLMOE.stats.layer("removal_loss", 0) ** 0.15
    np.testing.assert_allclose(weights[0], 16 * powers / powers.sum())


def test_importance_can_be_tokens_or_reap() -> None:
    moments = OLMOE.stats.layer("gate_norm_moment", 0)
    scores = {"frequency": moments[:, 0, 0], "reap": moments[:, 1, 1] / np.maximum(moments[:, 0, 0], 1.0)}
    for importance, score in scores.items():
        ranks = ranks_of(decided(SVD(alpha=1.0, importance=importance)), 0)[:, 2]
        assert (np.diff(np.where(ranks == 0, 22, ranks)[np.argsort(score)]) >= 0).all()


def test_spectrum_gives_rank_to_the_matrix_with_energy() -> None:
    spectrum = np.tile(0.5 ** np.arange(32), (16, 3, 1))
    spectrum[5, 1] *= 1e3
    spectrum[6] *= 1e-3
    stats = Stats({"whitened_spectrum": (spectrum,) * 5})
    ranks = ranks_of(decided(WhitenedSVD(keep=0.3, ranks="spectrum"), stats), 2)
    ordinary = ranks[0, 0]
    assert ranks[5, 1] > ordinary + 5 and (ranks[6] < ordinary - 5).all() and ranks[5, 0] in (ordinary, ordinary - 1)


@pytest.mark.parametrize("method", [SVD(keep=0.01), WhitenedSVD(keep=(0.01, 0.5)), D2MoE(keep=0.05), MoBE(keep=0.2)])
def test_less_than_rank_one_is_refused_with_what_can_be_reached(method: Method) -> None:
    with pytest.raises(RefusedError, match=r"(?s)keep=.*(smallest keep is 0\.\d+|between 0\.\d+ and 0\.\d+)"):
        decided(method)


@pytest.mark.parametrize("cls", [SVD, WhitenedSVD, D2MoE, MoBE])
def test_experts_in_another_form_are_refused(cls: type[Method]) -> None:
    stored = result(decided(SVD()), OLMOE.inventory)
    with pytest.raises(RefusedError, match="stored in another form"):
        cls().plan(stored, OLMOE.stats)


def relabelled(name: str, order: list[int]) -> Stats:
    return Stats({name: tuple(value[order] for value in OLMOE.stats.values[name] if value is not None)})


@pytest.mark.parametrize(
    ("method", "need"), [(SVD(), "removal_loss"), (WhitenedSVD(ranks="spectrum"), "whitened_spectrum")]
)
def test_relabelled_experts_have_relabelled_ranks(method: Method, need: str) -> None:
    order = np.random.default_rng(0).permutation(16).tolist()
    before, after = decided(method), decided(method, relabelled(need, order))
    for layer in range(5):
        assert (ranks_of(after, layer) == ranks_of(before, layer)[order]).all()


def test_base_by_entry_is_stated_by_its_kernel_and_reads_nothing_to_decide() -> None:
    method = D2MoE(columns=0.5)
    plan = decided(method, Stats({}))
    for layer in range(5):
        rank = plan.layers[layer].rank
        assert rank is not None and rank.base is not None
        base = rank.base
        assert (base.kernel, base.weights, base.members, base.columns) == ("fisher", (), tuple(range(16)), 0.5)
    assert method.needs == frozenset() and plan.moments == method.moments
    assert method.moments == {"entry_fisher", "input_gram", "channel_gram", "routed_tokens"}
    by_expert = D2MoE(columns=0.5, weights="expert")
    assert by_expert.needs == {"fisher_mass"} and by_expert.moments == method.moments - {"entry_fisher"}
    assert by_expert.moments == decided(by_expert).moments
    assert (ranks_of(decided(by_expert), 0) == ranks_of(plan, 0)).all()
    with pytest.raises(ValueError, match="states none"):
        SharedBase(members=(0, 1), kernel="fisher", weights=(0.5, 0.5))
    with pytest.raises(ValueError, match="needs as many weights"):
        SharedBase(members=(0, 1))


def test_base_is_the_average_by_fisher_mass() -> None:
    plan = decided(D2MoE(columns=0.5, weights="expert"))
    for layer in range(5):
        mass = OLMOE.stats.layer("fisher_mass", layer).sum(axis=1)
        rank = plan.layers[layer].rank
        assert rank is not None and rank.base is not None
        assert rank.kernel == "whitened" and rank.base.members == tuple(range(16)) and rank.base.columns == 0.5
        np.testing.assert_allclose(rank.base.weights, mass / mass.sum())
    order = np.random.default_rng(0).permutation(16).tolist()
    after = decided(D2MoE(columns=0.5, weights="expert"), relabelled("fisher_mass", order)).layers[3].rank
    before = plan.layers[3].rank
    assert after is not None and after.base is not None and before is not None and before.base is not None
    assert after.base.weights == tuple(before.base.weights[expert] for expert in order)


def test_without_fisher_mass_all_experts_weigh_the_same() -> None:
    assert fisher_weights(np.zeros((4, 3))) == (0.25,) * 4
    assert fisher_weights(np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 6.0]])) == (0.25, 0.75)


@pytest.mark.parametrize("columns", [0.1, 0.5, 1.0])
def test_base_and_factors_meet_the_budget(columns: float) -> None:
    for keep in (0.2, 0.25, 0.5, 0.75, 0.97):
        plan = decided(D2MoE(keep=keep, columns=columns))
        assert abs(routed(plan) - keep * 5 * LAYER) <= 16 * 3 * ONE_RANK / 2 + 1
        ranks = [set(ranks_of(plan, layer).ravel().tolist()) for layer in range(5)]
        assert all(len(found) == 1 for found in ranks) and len(set().union(*ranks)) <= 2
        if columns == 1.0:  # one base and r (D + F) for each matrix of 16 experts
            rank = int(max(max(found) for found in ranks))
            exact = (keep * 16 - 1) * 64 * 32 / (16 * ONE_RANK)
            assert abs(rank - exact) < 1


def test_base_without_columns_leaves_more_for_the_factors() -> None:
    whole, half = (ranks_of(decided(D2MoE(columns=columns)), 0)[0, 0] for columns in (1.0, 0.25))
    assert half > whole


def test_d2_moe_at_keep_one_is_the_identity_also_in_a_single_layer() -> None:
    assert decided(D2MoE(keep=1.0)) == Plan.identity(OLMOE.inventory) and D2MoE(keep=1.0).moments == frozenset()
    plan = decided(D2MoE(keep=(1.0, 0.5)))
    assert plan.layers[0].rank is None and plan.layers[1].rank is not None
    with pytest.raises(StatsError, match="fisher_mass"):
        D2MoE(weights="expert").plan(OLMOE.inventory, OLMOE.stats.only(()))


def test_share_of_shared_bases_is_the_published_one_and_the_mixing_weights() -> None:
    """Ling-Lite-like sizes: r = F, 4 bases for 64 experts."""
    sizes, experts, width, hidden, count = Sizes(64, 1408, 2048), 64, 1408, 2048, 4
    published = Fraction(1, 3) + Fraction(2 * width, 3 * hidden) + Fraction(2 * count * width, 3 * experts * width)
    mixing = Fraction(2 * experts * count, 3 * experts * width * hidden)
    assert sizes.share(count, width) == pytest.approx(float(published + mixing), rel=1e-12)
    assert sizes.count(sizes.share(count, width), width) == pytest.approx(count)
    assert sizes.rank(sizes.share(count, 700), count) == pytest.approx(700)


def test_bases_are_as_many_as_keep_allows() -> None:
    plan = decided(MoBE(keep=0.85))
    share = Sizes(16, 32, 64)
    for layer in plan.layers:
        assert layer.bases is not None and layer.bases.rank == 32
        assert abs(layer.bases.count - share.count(0.85, 32)) < 1
    unit = 2 * (32 * 64 + 16)
    assert abs(routed(plan) - 0.85 * 5 * LAYER) <= unit / 2
    assert routed(plan) == pytest.approx(
        LAYER * sum(share.share(layer.bases.count, 32) for layer in plan.layers if layer.bases)
    )


@pytest.mark.parametrize("keep", [0.36, 0.5, 0.65])
def test_rank_falls_where_no_base_of_full_rank_fits(keep: float) -> None:
    plan = decided(MoBE(keep=keep))
    assert all(layer.bases is not None and layer.bases.count == 4 and layer.bases.rank < 32 for layer in plan.layers)
    assert abs(routed(plan) - keep * 5 * LAYER) <= (16 * 32 + 4 * 64)


def test_given_bases_and_largest_rank() -> None:
    plan = decided(MoBE(keep=0.5, bases=2, activation="tanh", steps=7, rate=0.01, seed=3))
    stated = plan.layers[0].bases
    assert stated is not None and (stated.count, stated.activation, stated.steps) == (2, "tanh", 7)
    assert (stated.rate, stated.seed) == (0.01, 3) and abs(stated.rank - Sizes(16, 32, 64).rank(0.5, 2)) < 1
    half = decided(MoBE(keep=0.6, rank=0.5)).layers[0].bases
    assert half is not None and half.rank == 16 and abs(half.count - Sizes(16, 32, 64).count(0.6, 16)) < 1
    for method, reason in (
        (MoBE(keep=0.9, bases=4), "out of reach of 4 bases of rank 1 to 32, which store between 0.3503 and 0.8346"),
        (MoBE(keep=0.9, rank=0.5), "out of reach of 1 to 16 bases of rank 16"),
        (MoBE(bases=17), "exceeds the 16 experts"),
    ):
        with pytest.raises(RefusedError, match=reason):
            decided(method)


def test_mobe_reads_nothing_and_is_the_identity_at_keep_one() -> None:
    method = MoBE()
    assert not method.needs and not method.moments
    assert decided(method, Stats({})) == decided(method, synthetic_stats(OLMOE.inventory, 5))
    assert decided(MoBE(keep=1.0)) == Plan.identity(OLMOE.inventory)
    knots = decided(MoBE(keep=(0.5, 1.0)))
    assert knots.layers[4].bases is None and knots.layers[0].bases is not None


@pytest.mark.parametrize("cls", [SVD, WhitenedSVD, D2MoE, MoBE])
def test_size_grows_with_keep(cls: type[Method]) -> None:
    sizes = [routed(decided(cls.configured({"keep": keep}))) for keep in (0.36, 0.5, 0.52, 0.7, 0.75, 0.9, 1.0)]
    assert sizes == sorted(sizes) and sizes[-1] == cost_of(OLMOE.inventory).routed_parameters


def test_experts_of_unequal_number_are_counted_each_by_its_layer() -> None:
    """After a selection that leaves layers of unequal size, the budget is still that of what is there."""
    layers = list(OLMOE.inventory.layers)
    layers[1] = replace(
        layers[1],
        experts=8,
        tensors=tuple(e for e in layers[1].tensors if e.role not in EXPERT_ROLES or (e.expert or 0) < 8),
    )
    inventory = OLMOE.inventory.with_layers(tuple(layers))
    loss = [OLMOE.stats.layer("removal_loss", index)[: layers[index].experts] for index in range(5)]
    found = routed(SVD().plan(inventory, Stats({"removal_loss": tuple(loss)})), inventory)
    before = cost_of(inventory).routed_parameters
    assert 0.5 * before - ONE_RANK < found <= 0.5 * before
