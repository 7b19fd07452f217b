"""Factors of one matrix against slow references in numpy and against the closed form of their error."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from methods.kernels.low_rank import base_columns, factored, root, spectrum

Array = NDArray[np.float64]

SHAPES = [(9, 14), (14, 9), (11, 11)]


def drawn(outputs: int, inputs: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(outputs, inputs))


def tokens_of(inputs: int, tokens: int, seed: int = 1) -> Array:
    """Return correlated inputs of unequal size, one token in a column."""
    rng = np.random.default_rng(seed)
    return np.asarray(
        (rng.normal(size=(inputs, inputs)) * rng.lognormal(size=inputs)).T @ rng.normal(size=(inputs, tokens))
    )


def gram_of(tokens_XT: Array) -> Array:
    return np.asarray(tokens_XT @ tokens_XT.T / tokens_XT.shape[1])


def product(weight: Array, rank: int, gram: Array | None = None, damping: float | None = None) -> Array:
    given = None if gram is None else torch.from_numpy(gram)
    options = {} if damping is None else {"damping": damping}
    left_MR, right_RN = factored(torch.from_numpy(weight), rank, given, **options)
    assert left_MR.shape == (weight.shape[0], rank) and right_RN.shape == (rank, weight.shape[1])
    return np.asarray((left_MR @ right_RN).numpy())


def plain_slowly(weight: Array, rank: int) -> Array:
    u, s, vt = np.linalg.svd(weight)
    out = np.zeros_like(weight)
    for i in range(rank):
        out += s[i] * np.outer(u[:, i], vt[i])
    return out


def whitened_slowly(weight: Array, rank: int, gram: Array) -> Array:
    """The factors as the paper writes them, with the inverse of S."""
    lower = np.linalg.cholesky(gram)
    u, s, vt = np.linalg.svd(weight @ lower)
    left = u[:, :rank] * np.sqrt(s[:rank])
    right = np.sqrt(s[:rank])[:, None] * vt[:rank] @ np.linalg.inv(lower)
    return np.asarray(left @ right)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_without_a_moment_it_is_the_truncated_decomposition(shape: tuple[int, int], rank: int) -> None:
    weight = drawn(*shape)
    np.testing.assert_allclose(product(weight, rank), plain_slowly(weight, rank), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_with_a_moment_it_is_what_the_paper_writes(shape: tuple[int, int], rank: int) -> None:
    weight, gram = drawn(*shape), gram_of(tokens_of(shape[1], 60))
    np.testing.assert_allclose(product(weight, rank, gram, damping=0.0), whitened_slowly(weight, rank, gram), atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_error_of_the_outputs_is_the_sum_of_the_squares_left(shape: tuple[int, int]) -> None:
    weight, tokens_XT = drawn(*shape), tokens_of(shape[1], 70)
    sigma = spectrum(torch.from_numpy(weight), torch.from_numpy(gram_of(tokens_XT)), damping=0.0).numpy()
    assert sigma.shape == (min(shape),) and (np.diff(sigma) <= 0).all()
    for rank in range(1, min(shape)):
        error = np.square((weight - product(weight, rank, gram_of(tokens_XT), damping=0.0)) @ tokens_XT).sum()
        assert error == pytest.approx(70 * np.square(sigma[rank:]).sum(), rel=1e-9)


def test_plain_spectrum_is_that_of_the_matrix() -> None:
    weight = drawn(6, 9)
    expected = np.sqrt(np.linalg.eigvalsh(weight @ weight.T)[::-1])
    np.testing.assert_allclose(spectrum(torch.from_numpy(weight)).numpy(), expected, rtol=1e-9)
    assert spectrum(torch.from_numpy(weight).float()).dtype == torch.float64


@pytest.mark.parametrize("tokens", [4, 60])
@pytest.mark.parametrize("shape", SHAPES)
def test_moment_never_makes_outputs_worse(shape: tuple[int, int], tokens: int) -> None:
    for seed in range(5):
        weight, tokens_XT = drawn(*shape, seed), tokens_of(shape[1], tokens, seed)
        for rank in (1, 3, 6):
            plain = np.square((weight - product(weight, rank)) @ tokens_XT).sum()
            whitened = np.square((weight - product(weight, rank, gram_of(tokens_XT))) @ tokens_XT).sum()
            assert whitened < plain * (1 + 1e-9) + 1e-9


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("tokens", [0, 1, 5, 60])
def test_full_rank_is_the_matrix(shape: tuple[int, int], tokens: int) -> None:
    weight = drawn(*shape)
    gram = gram_of(tokens_of(shape[1], tokens)) if tokens else np.zeros((shape[1], shape[1]))
    np.testing.assert_allclose(product(weight, min(shape), gram), weight, atol=1e-7)


def test_few_tokens_leave_no_error_on_them() -> None:
    """Three tokens span three directions, so rank 3 has no error there, and the next rank serves the entries."""
    weight, tokens_XT = drawn(12, 15), tokens_of(15, 3)
    np.testing.assert_allclose(product(weight, 3, gram_of(tokens_XT)) @ tokens_XT, weight @ tokens_XT, atol=1e-6)
    errors = [np.square(weight - product(weight, rank, gram_of(tokens_XT))).sum() for rank in (3, 6, 9, 12)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-10


def test_no_token_is_the_plain_decomposition() -> None:
    weight = drawn(8, 10)
    assert (product(weight, 3, np.zeros((10, 10))) == product(weight, 3)).all()
    zero = torch.zeros(10, 10, dtype=torch.float64)
    assert torch.equal(spectrum(torch.from_numpy(weight), zero), spectrum(torch.from_numpy(weight)))


def test_scale_of_the_moment_changes_nothing_and_factors_are_balanced() -> None:
    weight, gram = drawn(8, 10), gram_of(tokens_of(10, 40))
    one = factored(torch.from_numpy(weight), 4, torch.from_numpy(gram))
    other = factored(torch.from_numpy(weight), 4, torch.from_numpy(gram * 1e-8))
    torch.testing.assert_close(one.left_MR.abs(), other.left_MR.abs(), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(one.left_MR.norm(dim=0), one.right_RN.norm(dim=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_type_of_the_weight_is_kept(dtype: torch.dtype) -> None:
    weight = torch.from_numpy(drawn(8, 10)).to(dtype)
    factors = factored(weight, 3, torch.from_numpy(gram_of(tokens_of(10, 40))).float())
    assert {factor.dtype for factor in factors} == {dtype}


def test_zero_matrix_and_low_rank_matrix_have_finite_factors() -> None:
    gram = gram_of(tokens_of(10, 40))
    assert (product(np.zeros((8, 10)), 3, gram) == 0).all()
    low = drawn(8, 2) @ drawn(2, 10, seed=5)
    np.testing.assert_allclose(product(low, 5, gram), low, atol=1e-9)


@pytest.mark.parametrize("rank", [0, 9])
def test_rank_out_of_range_is_a_defect(rank: int) -> None:
    with pytest.raises(ValueError, match="it can be 1 to 8"):
        factored(torch.ones(8, 10), rank)


def test_damping_is_the_least_that_suffices() -> None:
    full = gram_of(tokens_of(10, 40))
    lower = root(torch.from_numpy(full), damping=0.0)
    np.testing.assert_allclose((lower @ lower.T).numpy(), full, rtol=1e-12, atol=1e-12)
    single = gram_of(tokens_of(10, 3)).astype(np.float32)  # its rounding makes eigenvalues negative
    damped = root(torch.from_numpy(single), damping=0.0)
    excess = (damped @ damped.T).numpy() - single
    share = np.diag(excess).mean() / np.diag(single).mean()
    assert 1e-13 < share < 1e-5 and np.abs(excess - np.diag(np.diag(excess))).max() < 1e-10
    with pytest.raises(np.linalg.LinAlgError):
        np.linalg.cholesky(single.astype(np.float64) + share / 100 * np.diag(single).mean() * np.eye(10))


def test_what_is_no_moment_is_refused() -> None:
    with pytest.raises(ValueError, match="no second moment"):
        root(torch.tensor([[1.0, 9.0], [9.0, 1.0]]))


def test_columns_of_a_base_by_hand() -> None:
    base = torch.tensor([[1.0, -3.0, 2.0, 0.0], [0.0, 0.0, 0.0, 2.0]])
    assert base_columns(base, None, 1).tolist() == [1]
    assert base_columns(base, None, 2).tolist() == [1, 2]  # a tie of 2 and 3
    assert base_columns(base, torch.tensor([100.0, 1.0, 1.0, 3.0]), 2).tolist() == [0, 3]
    assert base_columns(base, torch.zeros(4), 1).tolist() == [1]
    assert base_columns(base, None, 4).dtype == torch.int64


def test_columns_of_a_base_slowly() -> None:
    weight, square = drawn(7, 30), np.random.default_rng(3).uniform(0, 2, 30)
    scores = [np.sqrt(sum(weight[i, j] ** 2 for i in range(7))) * np.sqrt(square[j]) for j in range(30)]
    expected = sorted(sorted(range(30), key=lambda j: (-scores[j], j))[:11])
    assert base_columns(torch.from_numpy(weight), torch.from_numpy(square), 11).tolist() == expected
