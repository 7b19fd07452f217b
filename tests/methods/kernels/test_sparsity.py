"""Kernels of sparsity against their definitions, and against each other on the loss that they mean to keep small."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from methods.framework.inside import Sparsity
from methods.kernels import sparsity as kernels
from methods.kernels.sparsity import InputMoments, inverse_factor, sparsified
from tests.support.sparsity_reference import Array, loss, masked_slowly, sparsegpt_slowly

KERNELS = ("magnitude", "wanda", "moe_pruner", "sparsegpt")
RULES = [
    *(Sparsity(share=share, kernel=kernel) for share in (0.1, 0.5, 0.73) for kernel in KERNELS),
    *(Sparsity(share=0.5, pattern=pattern, kernel=kernel) for pattern in ("2:4", "4:8") for kernel in KERNELS),
]


def label(rule: Sparsity) -> str:
    return f"{rule.kernel}-{rule.pattern}-{rule.share}"


def gram_of(inputs: int, tokens: int, seed: int) -> Array:
    """Return the Gram matrix of correlated inputs of unequal size."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    tokens_TX = rng.normal(size=(tokens, inputs)) @ mixing * rng.lognormal(sigma=0.7, size=inputs)
    return np.asarray(tokens_TX.T @ tokens_TX / tokens)


def drawn(outputs: int, inputs: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(outputs, inputs))


def moments(gram: Array) -> InputMoments:
    return InputMoments(torch.from_numpy(np.diag(gram).copy()), torch.from_numpy(gram))


def run(weight: Array, rule: Sparsity, gram: Array) -> Array:
    return np.asarray(sparsified(torch.from_numpy(weight), rule, moments(gram)).numpy())


@pytest.mark.parametrize("kernel", KERNELS)
def test_of_two_weights_the_larger_stays(kernel: str) -> None:
    weight = torch.tensor([[0.5, -2.0], [-3.0, 1.0]])
    made = sparsified(weight, Sparsity(share=0.5, kernel=kernel), moments(np.eye(2)))
    assert made.tolist() == [[0.0, -2.0], [-3.0, 0.0]]


@pytest.mark.parametrize("rule", RULES, ids=label)
@pytest.mark.parametrize("inputs", [16, 128, 200])
def test_every_row_or_group_has_its_zeros(rule: Sparsity, inputs: int) -> None:
    made = run(drawn(5, inputs), rule, gram_of(inputs, 400, seed=1))
    if rule.pattern == "unstructured":
        assert ((made == 0).sum(axis=1) == int(inputs * rule.share)).all()
    else:
        zeros, size = map(int, rule.pattern.split(":"))
        assert ((made.reshape(5, -1, size) == 0).sum(axis=2) == zeros).all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kernel != "sparsegpt"], ids=label)
def test_masks_are_those_of_a_loop_and_what_stays_keeps_its_bits(rule: Sparsity) -> None:
    weight, gram = drawn(6, 48).astype(np.float32), gram_of(48, 100, seed=2)
    norms = np.ones(48) if rule.kernel == "magnitude" else np.sqrt(np.diag(gram))
    made = sparsified(torch.from_numpy(weight), rule, moments(gram))
    assert made.dtype == torch.float32
    assert np.array_equal(made.numpy(), masked_slowly(weight.astype(np.float64), norms, rule).astype(np.float32))


@pytest.mark.parametrize("share", [0.25, 0.5])
@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_ties_go_to_the_lower_input(pattern: str, share: float) -> None:
    if pattern != "unstructured" and share != 0.5:
        return
    weight = np.random.default_rng(5).integers(-2, 3, size=(40, 16)).astype(np.float64)
    rule = Sparsity(share=share, pattern=pattern)
    assert np.array_equal(run(weight, rule, np.eye(16)), masked_slowly(weight, np.ones(16), rule))
    assert not sparsified(torch.zeros(2, 8), rule, None).any()


def test_the_selection_does_not_depend_on_how_the_threshold_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = torch.from_numpy(np.random.default_rng(6).integers(0, 4, size=(20, 33)).astype(np.float32))

    def by_kthvalue(values: np.ndarray, place: int, axis: int) -> np.ndarray:
        limit = torch.from_numpy(values).kthvalue(place + 1, dim=axis, keepdim=True).values
        return np.broadcast_to(limit.numpy(), values.shape)

    expected = [kernels._smallest(scores, count) for count in range(34)]
    monkeypatch.setattr(kernels.np, "partition", by_kthvalue)  # what runs on an accelerator
    for count, mask in enumerate(expected):
        assert torch.equal(kernels._smallest(scores, count), mask) and (mask.sum(dim=1) == count).all()


@pytest.mark.parametrize("rule", [rule for rule in RULES if rule.kernel == "sparsegpt"], ids=label)
@pytest.mark.parametrize("block", [8, 128])
def test_sparsegpt_is_the_surgeon_with_explicit_inverses(
    rule: Sparsity, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "BLOCK", block)
    weight, gram = drawn(5, 40), gram_of(40, 70, seed=3)
    gram[:, 7] = gram[7] = 0.0  # never occurs
    expected = sparsegpt_slowly(weight, gram, rule, block)
    np.testing.assert_allclose(run(weight, rule, gram), expected, rtol=1e-8, atol=1e-10)
    single = sparsified(torch.from_numpy(weight).float(), rule, moments(gram))
    np.testing.assert_allclose(single.numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("inputs", [30, 301])
def test_the_factor_is_that_of_the_inverse(inputs: int) -> None:
    gram = gram_of(inputs, 4 * inputs, seed=4)
    damping = 0.01 * np.trace(gram) / inputs
    found = inverse_factor(torch.from_numpy(gram))
    assert found is not None and found[1] == pytest.approx(damping)
    expected = np.linalg.cholesky(np.linalg.inv(gram + damping * np.eye(inputs))).T
    np.testing.assert_allclose(found[0].numpy(), expected, rtol=1e-7, atol=1e-10)


def test_a_weight_that_goes_is_made_up_for_exactly() -> None:
    """Where each row loses its first weight, what stays solves the least squares problem of the other inputs."""
    gram = gram_of(12, 300, seed=8)
    weight = drawn(4, 12) + 5.0
    weight[:, 0] = 0.01
    rule = Sparsity(share=1 / 12 + 1e-9, kernel="sparsegpt")
    damped = gram + 0.01 * np.trace(gram) / 12 * np.eye(12)
    made = run(weight, rule, gram)
    best = weight[:, 1:] + weight[:, :1] * np.linalg.solve(damped[1:, 1:], damped[1:, 0])
    np.testing.assert_allclose(made[:, 1:], best, rtol=1e-9)
    assert not made[:, 0].any()


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_without_correlations_sparsegpt_is_magnitude(pattern: str) -> None:
    weight = drawn(7, 128, seed=9)
    rules = [Sparsity(share=0.5, pattern=pattern, kernel=kernel) for kernel in ("sparsegpt", "magnitude")]
    assert np.array_equal(run(weight, rules[0], np.eye(128)), run(weight, rules[1], np.eye(128)))


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "4:8"])
def test_sparsegpt_loses_least_and_wanda_less_than_magnitude(pattern: str) -> None:
    shares = (0.3, 0.5, 0.7) if pattern == "unstructured" else (0.5,)
    sums = np.zeros(3)
    for seed, share, inputs in itertools.product(range(4), shares, (32, 160)):
        gram, weight = gram_of(inputs, 2 * inputs, seed), drawn(16, inputs, seed + 50)
        rules = [Sparsity(share=share, pattern=pattern, kernel=k) for k in ("sparsegpt", "wanda", "magnitude")]
        losses = np.array([loss(weight, run(weight, rule, gram), gram) for rule in rules])
        assert losses[0] <= losses[2], "worse than magnitude"
        sums += losses / losses[2]
    assert sums[0] < sums[1] < sums[2]


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_an_expert_that_saw_no_token_is_pruned_by_magnitude(rule: Sparsity) -> None:
    weight = torch.from_numpy(drawn(4, 24)).float()
    expected = sparsified(weight, rule.model_copy(update={"kernel": "magnitude"}), None)
    assert torch.equal(sparsified(weight, rule, moments(np.zeros((24, 24)))), expected)
    assert torch.equal(sparsified(weight, rule, None), expected)


def test_an_expert_that_saw_fewer_tokens_than_it_has_inputs() -> None:
    gram, weight = gram_of(64, 3, seed=10), drawn(8, 64)
    rules = [Sparsity(share=0.5, kernel=kernel) for kernel in ("sparsegpt", "wanda")]
    made = [run(weight, rule, gram) for rule in rules]
    assert all(np.isfinite(m).all() and ((m == 0).sum(axis=1) == 32).all() for m in made)
    assert loss(weight, made[0], gram) < loss(weight, made[1], gram)


def test_weights_of_inputs_that_never_occur_go_first_the_smallest_before_the_others() -> None:
    gram = gram_of(16, 100, seed=11)
    absent = [3, 5, 6, 12]
    gram[absent] = gram[:, absent] = 0.0
    weight = drawn(6, 16) * 1e-3
    weight[:, absent] = [5.0, -9.0, 7.0, 1.0]
    for share, gone in ((4 / 16, absent), (2 / 16, [3, 12])):
        made = run(weight, Sparsity(share=share, kernel="sparsegpt"), gram)
        assert [np.flatnonzero(row == 0).tolist() for row in made] == [gone] * 6
        kept = [i for i in range(16) if i not in gone]
        assert np.array_equal(made[:, kept], weight[:, kept]), "what never occurs needs no making up for"


def test_damping_grows_until_the_matrix_can_be_factorised_and_wanda_stands_in_where_it_cannot() -> None:
    rng = np.random.default_rng(12)
    basis = np.linalg.qr(np.column_stack([np.ones(10), rng.normal(size=(10, 9))]))[0]
    rule = Sparsity(share=0.5, kernel="sparsegpt")
    weight = drawn(3, 10)
    for least, factorised in ((-0.05, True), (-5.0, False)):  # the rounding of float32 sums, greatly exaggerated
        gram = basis @ np.diag([least, *np.linspace(0.5, 2.0, 9)]) @ basis.T
        assert np.diag(gram).min() > 0
        assert (inverse_factor(torch.from_numpy(gram)) is not None) == factorised
        made = run(weight, rule, gram)
        assert ((made == 0).sum(axis=1) == 5).all()
        if not factorised:
            assert np.array_equal(made, run(weight, rule.model_copy(update={"kernel": "wanda"}), gram))


@pytest.mark.parametrize("rule", RULES, ids=label)
def test_rows_do_not_depend_on_each_other_and_the_input_is_left_alone(rule: Sparsity) -> None:
    weight, gram = torch.from_numpy(drawn(6, 136)), moments(gram_of(136, 300, seed=13))
    before = weight.clone()
    whole = sparsified(weight, rule, gram)
    assert torch.equal(weight, before)
    parts = torch.cat([sparsified(weight[:2], rule, gram), sparsified(weight[2:], rule, gram)])
    assert torch.equal(whole == 0, parts == 0)
    torch.testing.assert_close(whole, parts, rtol=1e-10, atol=1e-12)


def test_the_scale_of_the_moments_does_not_matter() -> None:
    weight, gram = drawn(5, 32), gram_of(32, 60, seed=14)
    for rule in RULES:
        np.testing.assert_allclose(run(weight, rule, gram), run(weight, rule, gram * 4096.0), rtol=1e-9)


def test_moments_that_lack_what_is_read_are_a_defect() -> None:
    weight = torch.ones(2, 4)
    with pytest.raises(ValueError, match="Gram"):
        sparsified(weight, Sparsity(share=0.5, kernel="sparsegpt"), InputMoments(square_X=torch.ones(4)))
    with pytest.raises(ValueError, match="neither"):
        sparsified(weight, Sparsity(share=0.5, kernel="wanda"), InputMoments())
