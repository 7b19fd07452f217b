"""The fit of shared bases: what it finds in planted matrices, and that it touches nothing else."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.kernels import shared_bases
from methods.kernels.shared_bases import Activation, FittedBases, fit_bases, restored

EXPERTS, OUTPUTS, INPUTS, COUNT, RANK = 6, 12, 20, 2, 6
ACTIVATIONS: tuple[Activation, ...] = ("silu", "tanh")


def planted(activation: Activation, seed: int = 1) -> Tensor:
    """Return matrices that are exactly mixtures of COUNT bases, in the scale of real weights."""
    draw = torch.Generator().manual_seed(seed)
    bases = 1.5 * torch.randn(COUNT, RANK, INPUTS, generator=draw)
    mix = (1.5 * torch.randn(EXPERTS, COUNT, generator=draw)).softmax(dim=1)
    left = 0.02 * torch.randn(EXPERTS, OUTPUTS, RANK, generator=draw)
    mixed = [mix[i, 0] * bases[0] + mix[i, 1] * bases[1] for i in range(EXPERTS)]
    bent = [torch.tanh(x) if activation == "tanh" else x / (1 + torch.exp(-x)) for x in mixed]
    return torch.stack([left[i] @ bent[i] for i in range(EXPERTS)])


def fitted(weights: Tensor, activation: Activation = "silu", steps: int = 400, seed: int = 0) -> FittedBases:
    return fit_bases(weights, COUNT, RANK, activation, steps, 0.07, seed)


def error(weights: Tensor, fit: FittedBases, activation: Activation) -> float:
    """Return the mean over experts of the squared error, each relative to the matrix."""
    parts = zip(weights, fit.left_EMR, fit.mix_EC, strict=True)
    return float(
        np.mean(
            [
                float((w - restored(left, mix, fit.bases_CRN, activation)).square().sum() / w.square().sum())
                for w, left, mix in parts
            ]
        )
    )


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_error_falls_far_below_the_start_and_the_mean_matrix(activation: Activation) -> None:
    """The planted bases themselves are not found: the problem is not convex, and Adam ends in another minimum."""
    weights = planted(activation)
    mean = weights.mean(dim=0)
    trivial = float((weights - mean).square().sum() / weights.square().sum())
    start = error(weights, fit_bases(weights, COUNT, RANK, activation, 1, 1e-12, 0), activation)
    end = error(weights, fitted(weights, activation), activation)
    assert end < 0.3 * start and end < 0.05 * trivial, (start, end, trivial)


def test_more_steps_bring_less_error() -> None:
    weights = planted("silu")
    errors = [error(weights, fitted(weights, steps=steps), "silu") for steps in (1, 20, 150)]
    assert errors == sorted(errors, reverse=True) and errors[2] < 0.5 * errors[0]


def test_rate_that_destroys_the_fit_leaves_the_start() -> None:
    weights = planted("silu")
    start = error(weights, fit_bases(weights, COUNT, RANK, "silu", 1, 1e-12, 0), "silu")
    wild = error(weights, fit_bases(weights, COUNT, RANK, "silu", 20, 1e4, 0), "silu")
    assert wild <= start * (1 + 1e-6)


def test_shapes_types_and_mixture() -> None:
    fit = fitted(planted("silu").double(), steps=20)
    assert fit.left_EMR.shape == (EXPERTS, OUTPUTS, RANK) and fit.bases_CRN.shape == (COUNT, RANK, INPUTS)
    assert fit.mix_EC.shape == (EXPERTS, COUNT) and bool((fit.mix_EC >= 0).all())
    torch.testing.assert_close(fit.mix_EC.sum(dim=1), torch.ones(EXPERTS))
    assert {tensor.dtype for tensor in fit} == {torch.float32} and not any(tensor.requires_grad for tensor in fit)


def test_scale_of_each_matrix_is_in_its_factor() -> None:
    weights = planted("silu")
    scales = torch.tensor([1.0, 1024.0, 1.0, 0.0625, 1.0, 4.0])  # powers of two, so that rounding is the same
    one, other = fitted(weights, steps=50), fitted(weights * scales[:, None, None], steps=50)
    assert torch.equal(one.bases_CRN, other.bases_CRN) and torch.equal(one.mix_EC, other.mix_EC)
    assert torch.equal(one.left_EMR * scales[:, None, None], other.left_EMR)


def test_mean_of_a_matrix_is_not_lost() -> None:
    weights = planted("silu")
    shifted = weights + 2 * weights.std()
    assert error(shifted, fitted(shifted, steps=100), "silu") < 0.02  # the mean is four fifths of the squares


def test_restored_by_hand() -> None:
    left, mix = torch.tensor([[2.0, -1.0]]), torch.tensor([0.25, 0.75])
    bases = torch.tensor([[[4.0], [0.0]], [[0.0], [-4.0]]])
    sigmoid = [1 / (1 + np.exp(-1.0)), 1 / (1 + np.exp(3.0))]
    assert float(restored(left, mix, bases, "silu")) == pytest.approx(2 * 1.0 * sigmoid[0] + 3.0 * sigmoid[1], rel=1e-6)
    assert float(restored(left, mix, bases, "tanh")) == pytest.approx(2 * np.tanh(1.0) + np.tanh(3.0), rel=1e-6)


def test_one_base_and_full_rank_without_nonlinearity_to_speak_of() -> None:
    """At full rank A_i can undo any f(B) with rows that span the inputs, so nothing is lost."""
    weights = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(0))
    fit = fit_bases(weights, 1, 8, "tanh", 5, 0.01, 0)
    assert error(weights, fit, "tanh") < 1e-3


def test_same_seed_same_result_and_another_seed_another() -> None:
    weights = planted("tanh")
    one, same, other = (fitted(weights, "tanh", 30, seed) for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one, same, strict=True))
    assert not torch.equal(one.mix_EC, other.mix_EC)


def test_global_random_state_and_inputs_are_left_alone() -> None:
    weights = planted("silu")
    copy, states = weights.clone(), (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]  # the legacy state is a tuple
    with torch.no_grad():
        fitted(weights, steps=5)
    assert torch.equal(weights, copy) and torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1] and np.random.get_state()[1].tolist() == states[2]  # type: ignore[index]  # the legacy state is a tuple


def test_experts_in_parts_have_the_same_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = planted("silu")
    whole = fitted(weights, steps=3)  # few, since Adam divides rounding by rounding where a gradient is small
    monkeypatch.setattr(shared_bases, "ELEMENTS_AT_ONCE", 2 * RANK * INPUTS)
    parts = fitted(weights, steps=3)
    for one, other in zip(whole, parts, strict=True):
        assert float((one - other).norm() / one.norm()) < 1e-4


@pytest.mark.parametrize("count", [5, 8, 11])
def test_as_many_bases_as_experts_and_more(count: int) -> None:
    weights = planted("silu")
    fit = fit_bases(weights, count, RANK, "silu", 5, 0.07, 0)
    assert fit.bases_CRN.shape[0] == count and all(bool(tensor.isfinite().all()) for tensor in fit)


def test_a_matrix_of_zeros_stays_zero() -> None:
    weights = planted("silu")
    weights[2] = 0
    fit = fitted(weights, steps=30)
    assert all(bool(tensor.isfinite().all()) for tensor in fit)
    assert float(restored(fit.left_EMR[2], fit.mix_EC[2], fit.bases_CRN, "silu").abs().max()) < 1e-2 * float(
        weights.abs().max()
    )


@pytest.mark.parametrize(("count", "rank"), [(0, 3), (2, 0), (2, 13)])
def test_sizes_out_of_range_are_a_defect(count: int, rank: int) -> None:
    with pytest.raises(ValueError, match="bases of rank"):
        fit_bases(planted("silu"), count, rank, "silu", 1, 0.1, 0)
