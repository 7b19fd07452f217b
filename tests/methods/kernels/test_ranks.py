"""Ranks from a budget: against slow loops, by hand, and what must hold for every model and budget."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from methods.framework.errors import RefusedError
from methods.kernels.ranks import (
    Integers,
    importance_ranks,
    importance_weights,
    levels,
    spectrum_ranks,
    uniform_ranks,
)

Numbers = NDArray[np.float64]
Rule = Callable[[float], list[Integers]]

RULES = ("uniform", "importance", "spectrum")


def shapes_of(experts: list[int], width: int, hidden: int) -> list[Integers]:
    gate, down = (width, hidden), (hidden, width)
    return [np.tile(np.array([gate, gate, down]), (count, 1, 1)) for count in experts]


def spectra_of(shapes: list[Integers], seed: int) -> list[Numbers]:
    """Return descending singular values, steep in some matrices and flat in others."""
    rng = np.random.default_rng(seed)
    found = []
    for group in shapes:
        values = rng.uniform(0.2, 1.0, (*group.shape[:-1], int(group.min())))
        values = values ** rng.uniform(0.0, 6.0, (*group.shape[:-1], 1)) * rng.lognormal(size=(*group.shape[:-1], 1))
        found.append(np.asarray(-np.sort(-values, axis=-1)))
    return found


def importance_of(shapes: list[Integers], seed: int) -> list[Numbers]:
    rng = np.random.default_rng(seed)
    return [rng.lognormal(sigma=2.0, size=len(group)) for group in shapes]


def rule_of(name: str, shapes: list[Integers], seed: int) -> Rule:
    if name == "uniform":
        return lambda budget: uniform_ranks(shapes, budget)
    if name == "importance":
        return lambda budget: importance_ranks(importance_of(shapes, seed), 0.5, shapes, budget)
    return lambda budget: spectrum_ranks(spectra_of(shapes, seed), shapes, budget)


def stored(shapes: Integers, ranks: Integers) -> Integers:
    """Return the parameters that each matrix costs at its rank, 0 for a whole one."""
    rows, columns = shapes[..., 0], shapes[..., 1]
    return np.where(ranks == 0, rows * columns, ranks * (rows + columns))


def total(shapes: list[Integers], ranks: list[Integers]) -> int:
    return sum(int(stored(group, found).sum()) for group, found in zip(shapes, ranks, strict=True))


def dense(shapes: list[Integers]) -> int:
    return sum(int(group.prod(axis=-1).sum()) for group in shapes)


def least(shapes: list[Integers]) -> int:
    return sum(int(np.minimum(group.sum(axis=-1), group.prod(axis=-1)).sum()) for group in shapes)


def heights(shapes: list[Integers], ranks: list[Integers]) -> Integers:
    """Return how large each matrix is among its levels."""
    parts = [np.where(r == 0, levels(g), r).ravel() for g, r in zip(shapes, ranks, strict=True)]
    return np.concatenate(parts)


models = st.builds(
    shapes_of,
    st.lists(st.integers(1, 5), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(1, 17),
)


@settings(max_examples=150, deadline=None)
@given(models, st.sampled_from(RULES), st.floats(0.0, 1.2), st.integers(0, 99))
def test_budget_is_met_within_one_rank_and_bounds_hold(
    shapes: list[Integers], name: str, share: float, seed: int
) -> None:
    budget = share * dense(shapes)
    rule = rule_of(name, shapes, seed)
    if budget < least(shapes) - 1:
        with pytest.raises(RefusedError, match="smallest keep"):
            rule(budget)
        return
    ranks = rule(max(budget, least(shapes)))
    found, asked = total(shapes, ranks), min(max(budget, least(shapes)), dense(shapes))
    assert asked - max(group.sum(axis=-1).max() for group in shapes) < found <= asked + 1e-6
    for group, part in zip(shapes, ranks, strict=True):
        assert part.shape == group.shape[:-1]
        rows, columns = group[..., 0], group[..., 1]
        assert ((part == 0) | ((part >= 1) & (part * (rows + columns) < rows * columns))).all()


@settings(max_examples=100, deadline=None)
@given(models, st.sampled_from(RULES), st.lists(st.floats(0.0, 1.0), min_size=2, max_size=4), st.integers(0, 99))
def test_no_rank_falls_when_the_budget_grows(shapes: list[Integers], name: str, shares: list[float], seed: int) -> None:
    low, rule = least(shapes), rule_of(name, shapes, seed)
    found = [heights(shapes, rule(low + share * (dense(shapes) - low))) for share in sorted(shares)]
    for smaller, larger in itertools.pairwise(found):
        assert (smaller <= larger).all()


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RULES[1:]), st.integers(2, 6), st.floats(0.3, 1.0), st.integers(0, 99))
def test_relabelled_experts_have_relabelled_ranks(name: str, experts: int, share: float, seed: int) -> None:
    shapes = shapes_of([experts, 3], 10, 14)
    order = np.random.default_rng(seed).permutation(experts)
    budget = share * dense(shapes)
    if name == "importance":
        values = importance_of(shapes, seed)
        before = importance_ranks(values, 0.3, shapes, budget)
        after = importance_ranks([values[0][order], values[1]], 0.3, shapes, budget)
    else:
        values = spectra_of(shapes, seed)
        before = spectrum_ranks(values, shapes, budget)
        after = spectrum_ranks([values[0][order], values[1]], shapes, budget)
    assert (after[0] == before[0][order]).all() and (after[1] == before[1]).all()


@pytest.mark.parametrize("name", RULES)
def test_everything_is_whole_with_the_whole_budget(name: str) -> None:
    shapes = shapes_of([3, 2], 7, 9)
    assert not any(part.any() for part in rule_of(name, shapes, 0)(dense(shapes)))
    assert any(part.any() for part in rule_of(name, shapes, 0)(dense(shapes) - 1))


@pytest.mark.parametrize("name", RULES)
def test_below_rank_one_is_refused_with_the_smallest_keep(name: str) -> None:
    shapes = shapes_of([3, 2], 7, 9)
    assert all((part == 1).all() for part in rule_of(name, shapes, 0)(least(shapes)))
    with pytest.raises(RefusedError, match=r"rank 1 of 15 matrices; the smallest keep is 0\.254"):
        rule_of(name, shapes, 0)(least(shapes) - 1)


def test_levels_by_hand() -> None:
    shapes = np.array([[4, 4], [3, 6], [2048, 1408], [4096, 14336], [1, 5]])
    # 4x4: rank 1 costs 8, rank 2 as much as the matrix. 3x6: rank 1 costs 9, rank 2 costs 18.
    assert levels(shapes).tolist() == [2, 2, 835, 3186, 1]


def test_uniform_ranks_are_equal_up_to_what_is_left() -> None:
    shapes = shapes_of([2], 10, 10)  # rank 1 costs 20, six matrices 120
    assert uniform_ranks(shapes, 240.0)[0].ravel().tolist() == [2, 2, 2, 2, 2, 2]
    assert uniform_ranks(shapes, 285.0)[0].ravel().tolist() == [3, 3, 2, 2, 2, 2]


def importance_slowly(importance: list[Numbers], alpha: float, shapes: list[Integers], budget: float) -> list[Integers]:
    """Bisection on R_a with the formula of the paper, largest R_a whose ranks fit."""

    def ranks(average: float) -> list[Integers]:
        found = []
        for values, group in zip(importance, shapes, strict=True):
            part = np.zeros(group.shape[:-1], dtype=np.int64)
            for expert in range(len(values)):
                share = values[expert] ** alpha / sum(value**alpha for value in values)
                for place, (rows, columns) in enumerate(group[expert]):
                    rank = max(1, int(np.floor(share * average * len(values))))
                    part[expert, place] = 0 if rank * (rows + columns) >= rows * columns else rank
            found.append(part)
        return found

    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if total(shapes, ranks(middle)) <= budget else (low, middle)
    return ranks(low)


@pytest.mark.parametrize("alpha", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.8])
def test_importance_ranks_are_those_of_the_bisection(alpha: float, keep: float) -> None:
    shapes = shapes_of([4, 6], 30, 41)
    importance = importance_of(shapes, 3)
    fast = importance_ranks(importance, alpha, shapes, keep * dense(shapes))
    slow = importance_slowly(importance, alpha, shapes, keep * dense(shapes))
    more = heights(shapes, fast) - heights(shapes, slow)
    assert (more >= 0).all() and more.max() <= 1  # matrices that reach a rank at the same R_a may not all fit
    sizes = np.concatenate([group.sum(axis=-1).ravel() for group in shapes])
    assert total(shapes, fast) >= total(shapes, slow) and total(shapes, fast) > keep * dense(shapes) - sizes.max()
    if alpha:  # ties are then the three matrices of one expert
        assert more.sum() <= 2


def test_importance_of_nothing_is_the_least_and_importance_of_none_is_equal() -> None:
    shapes = shapes_of([4], 30, 41)
    ranks = importance_ranks([np.array([0.0, 1.0, 1.0, 1.0])], 0.15, shapes, 0.5 * dense(shapes))[0]
    assert (ranks[0] == 1).all() and (ranks[1:] > 10).all()
    assert importance_weights(np.zeros(4), 0.15).tolist() == [1.0] * 4
    weights = importance_weights(np.array([1.0, 10.0]), 0.15)
    assert weights[1] / weights[0] == pytest.approx(1.4125, abs=1e-4) and weights.mean() == pytest.approx(1.0)


def curve(sigma: Numbers, rows: int, columns: int) -> list[tuple[int, float]]:
    """Return cost and energy of one matrix at each level."""
    most = int(levels(np.array([rows, columns])))
    points = [(rank * (rows + columns), float(np.square(sigma[:rank]).sum())) for rank in range(1, most)]
    return [*points, (rows * columns, float(np.square(sigma).sum()))]


def corners(points: list[tuple[int, float]]) -> set[int]:
    """Return the levels that lie above every chord between a lower and a higher one."""

    def below(k: int) -> bool:
        (cost, energy) = points[k]
        return any(
            energy <= a[1] + (b[1] - a[1]) * (cost - a[0]) / (b[0] - a[0]) + 1e-12
            for a in points[:k]
            for b in points[k + 1 :]
        )

    return {k + 1 for k in range(len(points)) if not below(k)}


@pytest.mark.parametrize("seed", range(6))
def test_spectrum_ranks_are_the_best_for_their_cost_except_in_one_matrix(seed: int) -> None:
    shapes = [np.array([[9, 12], [8, 8], [12, 9], [6, 15]])]
    spectra = spectra_of(shapes, seed)
    curves = [curve(sigma, *shape) for sigma, shape in zip(spectra[0], shapes[0].tolist(), strict=True)]
    every = np.array([np.sum(points, axis=0) for points in itertools.product(*curves)])
    exact = 0
    for budget in range(least(shapes), dense(shapes) + 1, 2):
        found = heights(shapes, spectrum_ranks(spectra, shapes, budget)).tolist()
        cost, energy = np.sum([points[height - 1] for points, height in zip(curves, found, strict=True)], axis=0)
        best = every[every[:, 0] <= cost, 1].max()
        inside = sum(height not in corners(points) for points, height in zip(curves, found, strict=True))
        assert inside <= 1
        if not inside:
            assert energy == pytest.approx(best, rel=1e-12)
            exact += 1
    assert exact >= 10


def test_flat_matrix_becomes_whole_before_another_grows() -> None:
    """With equal singular values, half of the energy comes with the step to the whole matrix."""
    shapes = [np.array([[8, 8], [8, 8]])]
    flat = [np.ones((2, 8))]
    assert spectrum_ranks(flat, shapes, 16 + 64)[0].tolist() == [0, 1]
    steep = [np.stack([np.full(8, 0.5), np.array([9, 8, 7, 0, 0, 0, 0, 0.0])])]
    assert spectrum_ranks(steep, shapes, 16 + 48)[0].tolist() == [1, 3]


def test_ties_go_to_the_first() -> None:
    shapes = [np.array([[10, 10], [10, 10], [10, 10]])]
    steep = [np.tile(10.0 ** -np.arange(10), (3, 1))]
    assert spectrum_ranks(steep, shapes, 100.0)[0].tolist() == [2, 2, 1]
    assert importance_ranks([np.ones(3)], 0.15, shapes, 100.0)[0].tolist() == [2, 2, 1]
