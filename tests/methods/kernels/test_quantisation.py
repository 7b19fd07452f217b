"""Rounding, GPTQ and shrunk moments against their definitions, written as loops with explicit inverses."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from methods.kernels import gptq as kernel
from methods.kernels.gptq import gptq
from methods.kernels.quadratic import mean_squares
from methods.kernels.quantisation import Quantised, dequantised, round_to_nearest
from methods.kernels.shrinkage import pooled, shrunk
from methods.kernels.sparsity import inverse_factor
from tests.support.sparsity_reference import loss

Array = NDArray[np.float64]
STORED = (torch.bfloat16, torch.float16, torch.float32)


def gram_of(inputs: int, tokens: int, seed: int) -> Array:
    """Return the Gram matrix of correlated inputs of unequal size."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(inputs, inputs)) / np.sqrt(inputs) + np.eye(inputs)
    tokens_TX = rng.normal(size=(tokens, inputs)) @ mixing * rng.lognormal(sigma=0.7, size=inputs)
    return np.asarray(tokens_TX.T @ tokens_TX / tokens)


def drawn(outputs: int, inputs: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(outputs, inputs))


def stored(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=torch.float64).to(dtype))


def scale_slowly(weights: list[float], bits: int, dtype: torch.dtype) -> float:
    scale = stored(max(abs(w) for w in weights) / ((2**bits - 1) / 2), dtype)
    return scale if scale > 0 else torch.finfo(dtype).eps


def code_slowly(weight: float, scale: float, bits: int) -> int:
    """Round the exact quotient, halves to the even code."""
    return max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, round(Fraction(weight) / Fraction(scale))))


def gptq_slowly(
    weight: Array, bits: int, group: int, gram: Array, dtype: torch.dtype, zero: NDArray[np.bool_] | None = None
) -> tuple[list[list[int]], list[list[float]]]:
    """Optimal brain surgeon with inputs taken in order: for each input the inverse of what remains of the Gram matrix."""
    outputs, inputs = weight.shape
    damped = gram + 0.01 * np.mean([s for s in np.diag(gram) if s > 0]) * np.eye(inputs)
    inverses = [np.linalg.inv(damped[i:, i:]) for i in range(inputs)]
    zero = np.zeros(weight.shape, dtype=bool) if zero is None else zero
    codes, scales = [], []
    for row in range(outputs):
        current = weight[row].copy()
        row_codes: list[int] = []
        row_scales: list[float] = []
        for i in range(inputs):
            if i % group == 0:
                members = [float(current[j]) if not zero[row, j] else 0.0 for j in range(i, i + group)]
                row_scales.append(scale_slowly(members, bits, dtype))
            code = 0 if zero[row, i] else code_slowly(float(current[i]), row_scales[-1], bits)
            error = current[i] - stored(code * row_scales[-1], dtype)
            current[i:] -= error / inverses[i][0, 0] * inverses[i][0]
            row_codes.append(code)
        codes.append(row_codes)
        scales.append(row_scales)
    return codes, scales


def wide(quantised: Quantised) -> Array:
    return np.asarray(dequantised(quantised, torch.float64).numpy())


def row_losses(weight: Array, quantised: Quantised, gram: Array) -> Array:
    change = weight - wide(quantised)
    return np.einsum("ox,xy,oy->o", change, gram, change)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize(("bits", "group"), [(4, 8), (4, 32), (8, 16), (8, 96)])
def test_rounding_is_that_of_a_loop(bits: int, group: int, dtype: torch.dtype) -> None:
    weight = drawn(5, 96)
    made = round_to_nearest(torch.from_numpy(weight), bits, group, dtype)
    assert made.codes_OX.dtype == torch.int8 and made.scale_OG.dtype == dtype
    assert made.scale_OG.shape == (5, 96 // group)
    for row in range(5):
        for start in range(0, 96, group):
            members = [float(w) for w in weight[row, start : start + group]]
            scale = scale_slowly(members, bits, dtype)
            assert float(made.scale_OG[row, start // group]) == scale
            expected = [code_slowly(w, scale, bits) for w in members]
            assert made.codes_OX[row, start : start + group].tolist() == expected


@pytest.mark.parametrize("bits", [4, 8])
def test_no_weight_is_further_than_half_a_scale_from_its_value(bits: int) -> None:
    weight = torch.from_numpy(drawn(20, 128, seed=1))
    made = round_to_nearest(weight, bits, 32, torch.float32)
    assert made.codes_OX.min() == -(2 ** (bits - 1)) and made.codes_OX.max() == 2 ** (bits - 1) - 1, (
        "all codes are used"
    )
    steps = (weight - dequantised(made, torch.float64)).abs() / made.scale_OG.double().repeat_interleave(32, dim=1)
    assert 0.45 < float(steps.max()) <= 0.5 + 1e-4


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_values_are_products_in_the_type_of_the_scales(dtype: torch.dtype) -> None:
    made = round_to_nearest(torch.from_numpy(drawn(4, 32, seed=2)).float(), 8, 16, dtype)
    for row in range(4):
        for place in range(32):
            product = int(made.codes_OX[row, place]) * float(made.scale_OG[row, place // 16])
            assert float(dequantised(made, torch.float64)[row, place]) == stored(product, dtype)
    assert dequantised(made, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_zeros_stay_zero_and_a_group_of_zeros_has_a_scale(dtype: torch.dtype) -> None:
    weight = torch.from_numpy(drawn(3, 32, seed=3))
    weight[:, ::3] = 0.0
    weight[1, 16:] = 0.0
    made = round_to_nearest(weight, 4, 16, dtype)
    assert not dequantised(made, dtype)[weight == 0].any()
    assert not made.codes_OX[1, 16:].any()
    assert made.scale_OG.isfinite().all() and (made.scale_OG > 0).all()


def test_weights_too_small_for_the_type_of_the_scales_become_zero() -> None:
    made = round_to_nearest(torch.full((1, 8), 1e-8), 4, 8, torch.float16)
    assert not dequantised(made, torch.float32).any() and made.scale_OG.isfinite().all()


@pytest.mark.parametrize("group", [0, 7, 64])
def test_a_group_that_does_not_divide_the_inputs_is_a_defect(group: int) -> None:
    with pytest.raises(ValueError, match=f"groups of {group} do not divide the 32 inputs"):
        round_to_nearest(torch.ones(2, 32), 4, group, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize(("bits", "group"), [(4, 8), (4, 40), (8, 20)])
@pytest.mark.parametrize("block", [8, 128])
@pytest.mark.parametrize("sparse", [False, True])
def test_gptq_is_the_surgeon_with_explicit_inverses(
    bits: int, group: int, dtype: torch.dtype, block: int, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "BLOCK", block)
    weight, gram = drawn(6, 40), gram_of(40, 70, seed=3)
    gram[:, 7] = gram[7] = 0.0  # never occurs
    zero = np.random.default_rng(4).random(weight.shape) < 0.5 if sparse else None
    mask = None if zero is None else torch.from_numpy(zero)
    expected = gptq_slowly(weight, bits, group, gram, dtype, zero)
    surgeon = Quantised(
        torch.tensor(expected[0], dtype=torch.int8), torch.tensor(expected[1], dtype=torch.float64).to(dtype)
    )
    kept = weight if zero is None else np.where(zero, 0.0, weight)
    nearest = round_to_nearest(torch.from_numpy(kept), bits, group, dtype)
    made = gptq(torch.from_numpy(weight), bits, group, torch.from_numpy(gram), dtype, mask)
    better = row_losses(weight, surgeon, gram) < row_losses(weight, nearest, gram)
    assert better.sum() >= 4, "a test of the fallback alone"
    for row in range(6):
        best = surgeon if better[row] else nearest
        assert torch.equal(made.codes_OX[row], best.codes_OX[row])
        assert torch.equal(made.scale_OG[row], best.scale_OG[row])


def test_a_rounding_is_made_up_for_by_hand() -> None:
    """Two inputs that are nearly always equal: what the first loses in rounding, the second takes over."""
    weight = torch.tensor([[7.0, 1.3, 1.3]], dtype=torch.float64)
    weight[0, 0] = 7.5  # scale 1
    gram = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.99], [0.0, 0.99, 1.0]], dtype=torch.float64)
    # The second is rounded to 1 and lost 0.3, of which 0.99 / 1.01 goes to the third: 1.594, rounded to 2.
    assert gptq(weight, 4, 3, gram, torch.float32).codes_OX.tolist() == [[7, 1, 2]]
    assert round_to_nearest(weight, 4, 3, torch.float32).codes_OX.tolist() == [[7, 1, 1]]


@pytest.mark.parametrize("bits", [4, 8])
def test_without_correlations_gptq_is_rounding(bits: int) -> None:
    weight = torch.from_numpy(drawn(7, 256, seed=5))
    square = torch.from_numpy(np.random.default_rng(6).uniform(0.1, 3.0, 256))
    made = gptq(weight, bits, 64, torch.diag(square), torch.bfloat16)
    nearest = round_to_nearest(weight, bits, 64, torch.bfloat16)
    assert torch.equal(made.codes_OX, nearest.codes_OX) and torch.equal(made.scale_OG, nearest.scale_OG)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [16, 64, 192])
def test_no_row_loses_more_than_by_rounding_and_all_together_much_less(bits: int, group: int) -> None:
    total = np.zeros(2)
    for seed, tokens in enumerate((5, 100, 1000)):
        gram, weight = gram_of(192, tokens, seed), drawn(24, 192, seed + 50)
        made = gptq(torch.from_numpy(weight), bits, group, torch.from_numpy(gram), torch.bfloat16)
        nearest = round_to_nearest(torch.from_numpy(weight), bits, group, torch.bfloat16)
        losses = row_losses(weight, made, gram), row_losses(weight, nearest, gram)
        assert (losses[0] <= losses[1] * (1 + 1e-9)).all()
        total += loss(weight, wide(made), gram), loss(weight, wide(nearest), gram)
    assert total[0] < 0.7 * total[1]


def test_a_row_that_the_recursion_serves_worse_keeps_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, gram = torch.from_numpy(drawn(4, 32, seed=7)), torch.from_numpy(gram_of(32, 100, seed=7))
    honest = gptq(weight, 4, 16, gram, torch.float32)
    nearest = round_to_nearest(weight, 4, 16, torch.float32)
    assert all(not torch.equal(honest.codes_OX[row], nearest.codes_OX[row]) for row in range(4))
    adjusted = kernel._adjusted

    def spoiled(*args: object) -> tuple[Quantised, torch.Tensor]:
        made, errors = adjusted(*args)  # type: ignore[arg-type]  # drawn arguments of several types
        made.codes_OX[1:3] = 0
        errors[1], errors[2] = 1e6, float("nan")
        return made, errors

    monkeypatch.setattr(kernel, "_adjusted", spoiled)
    made = gptq(weight, 4, 16, gram, torch.float32)
    for row, source in enumerate((honest, nearest, nearest, honest)):
        assert torch.equal(made.codes_OX[row], source.codes_OX[row])
        assert torch.equal(made.scale_OG[row], source.scale_OG[row])


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_errors_of_the_recursion_add_up_to_its_loss(act_order: bool, symmetric: bool) -> None:
    weight, gram = drawn(6, 300, seed=9), gram_of(300, 900, seed=9)
    damped = gram + 0.01 * np.trace(gram) / 300 * np.eye(300)
    zero = torch.rand(6, 300, generator=torch.Generator().manual_seed(1)) < 0.3
    wide, found = torch.from_numpy(weight), inverse_factor(torch.from_numpy(gram))
    assert found is not None and found[1] == pytest.approx(0.01 * np.trace(gram) / 300)
    if act_order:
        order = torch.arange(300)
        nearest = round_to_nearest(wide.masked_fill(zero, 0.0), 4, 20, torch.float32, symmetric)
        made, errors = kernel._in_order(wide, 4, nearest, found[0], zero, order)
    else:
        made, errors = kernel._adjusted(wide, 4, 20, found[0], torch.float32, zero, symmetric)
    change = weight - dequantised(made, torch.float64).numpy()
    np.testing.assert_allclose(errors.numpy(), np.einsum("ox,xy,oy->o", change, damped, change), rtol=1e-6)


@pytest.mark.parametrize("inputs", [5, 256, 700])
def test_mean_squares_are_those_of_the_outputs(inputs: int) -> None:
    rows, tokens = drawn(3, inputs, seed=1), drawn(40, inputs, seed=2)
    gram = torch.from_numpy(tokens.T @ tokens / 40)
    expected = np.square(tokens @ rows.T).mean(axis=0)
    np.testing.assert_allclose(mean_squares(torch.from_numpy(rows), gram).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("zeroed", [False, True])
def test_without_tokens_or_a_factor_gptq_is_rounding(zeroed: bool) -> None:
    weight = torch.from_numpy(drawn(4, 32, seed=8))
    zero = torch.rand(4, 32, generator=torch.Generator().manual_seed(0)) < 0.5 if zeroed else None
    nearest = round_to_nearest(weight if zero is None else weight.masked_fill(zero, 0.0), 4, 16, torch.bfloat16)
    indefinite = torch.diag(torch.linspace(0.5, 2.0, 32, dtype=torch.float64))
    indefinite[0, 1] = indefinite[1, 0] = 50.0
    for gram in (None, torch.zeros(32, 32), indefinite):
        made = gptq(weight, 4, 16, gram, torch.bfloat16, zero)
        assert torch.equal(made.codes_OX, nearest.codes_OX) and torch.equal(made.scale_OG, nearest.scale_OG)


@pytest.mark.parametrize("seed", range(3))
def test_zeroed_weights_stay_zero_and_are_made_up_for(seed: int) -> None:
    """Zeroing and rounding at once loses less than zeroing first and rounding well, and that less than rounding plainly."""
    gram, weight = gram_of(64, 300, seed), drawn(16, 64, seed + 9)
    zero = np.abs(weight) < np.median(np.abs(weight), axis=1, keepdims=True)
    target, mask, moment = torch.from_numpy(weight), torch.from_numpy(zero), torch.from_numpy(gram)
    masked = target.masked_fill(mask, 0.0)
    at_once = gptq(target, 4, 32, moment, torch.bfloat16, mask)
    after = gptq(masked, 4, 32, moment, torch.bfloat16, mask)
    plainly = round_to_nearest(masked, 4, 32, torch.bfloat16)
    assert not at_once.codes_OX[mask].any() and not after.codes_OX[mask].any()
    assert loss(weight, wide(at_once), gram) < loss(weight, wide(after), gram)
    assert loss(masked.numpy(), wide(after), gram) < loss(masked.numpy(), wide(plainly), gram)


@pytest.mark.parametrize("outputs", [1, 6])
def test_rows_do_not_depend_on_each_other_and_the_inputs_are_left_alone(outputs: int) -> None:
    weight, gram = torch.from_numpy(drawn(outputs, 144, seed=10)), torch.from_numpy(gram_of(144, 300, seed=10))
    before = weight.clone(), gram.clone()
    together = gptq(weight, 4, 48, gram, torch.bfloat16)
    assert torch.equal(weight, before[0]) and torch.equal(gram, before[1])
    for row in range(outputs):
        alone = gptq(weight[row : row + 1], 4, 48, gram, torch.bfloat16)
        assert torch.equal(alone.codes_OX[0], together.codes_OX[row])
    assert torch.equal(weight, before[0])


def test_gptq_computes_in_float32_what_it_computes_in_float64() -> None:
    weight, gram = drawn(16, 128, seed=11), gram_of(128, 500, seed=11)
    made = [
        gptq(torch.from_numpy(weight).to(dtype), 4, 32, torch.from_numpy(gram).float(), torch.bfloat16)
        for dtype in (torch.float32, torch.float64)
    ]
    losses = [loss(weight, wide(quantised), gram) for quantised in made]
    assert abs(losses[0] / losses[1] - 1) < 0.05


def test_few_tokens_borrow_from_the_layer_in_proportion() -> None:
    own, layer = torch.from_numpy(gram_of(40, 60, seed=12)), torch.from_numpy(gram_of(40, 90, seed=13))
    assert shrunk(own, 0, layer) is None
    made = shrunk(own, 4, layer)  # 10 would be enough
    assert made is not None
    for i in range(40):
        for j in range(40):
            assert float(made[i, j]) == pytest.approx(0.4 * float(own[i, j]) + 0.6 * float(layer[i, j]), rel=1e-12)
    assert shrunk(own, 10, layer) is own and shrunk(own, 1000, layer) is own
    nearly = shrunk(own, 10 - 1e-9, layer)
    assert nearly is not None and torch.allclose(nearly, own)


class ReadOnce(list[torch.Tensor]):
    """Counts how often each place is read."""

    def __init__(self, values: list[torch.Tensor]) -> None:
        super().__init__(values)
        self.reads = [0] * len(values)

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # takes any index, as a tensor does
        self.reads[place] += 1
        return super().__getitem__(place)


def test_pooled_moments_are_those_of_all_tokens_together() -> None:
    rng = np.random.default_rng(14)
    tokens = [3, 0, 50, 7]
    inputs = [rng.normal(size=(count, 12)) for count in tokens]
    means = ReadOnce([torch.from_numpy(x.T @ x / max(len(x), 1)) for x in inputs])
    before = [mean.clone() for mean in list.__iter__(means)]
    made = pooled(means, tokens)
    everything = np.concatenate(inputs)
    assert made is not None
    np.testing.assert_allclose(made.numpy(), everything.T @ everything / 60, rtol=1e-12, atol=1e-14)
    assert means.reads == [1, 0, 1, 1]
    assert all(torch.equal(a, b) for a, b in zip(list.__iter__(means), before, strict=True))
    assert pooled(means, [0, 0, 0, 0]) is None


def test_with_few_tokens_the_blend_serves_new_tokens_better() -> None:
    """Experts of a layer see inputs of the same kind; three tokens say less about them than all tokens of the layer do."""
    layer = gram_of(64, 2000, seed=15)
    root = np.linalg.cholesky(layer)
    few = root @ np.random.default_rng(16).normal(size=(64, 3))
    own, weight = torch.from_numpy(few @ few.T / 3), drawn(16, 64, seed=17)
    blend = shrunk(own, 3, torch.from_numpy(layer))
    losses = [
        loss(weight, wide(gptq(torch.from_numpy(weight), 4, 32, gram, torch.bfloat16)), layer) for gram in (blend, own)
    ]
    assert losses[0] < losses[1]
