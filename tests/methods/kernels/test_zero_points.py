"""Zero points and the order of inputs: by loops over weights, and as the library of the format reads what is packed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

from bench.experts.packing import ZERO_POINT, packed, unpacked
from methods.framework.inside import Quantisation
from methods.kernels.gptq import gptq
from methods.kernels.quantisation import dequantised, round_to_nearest

OUTPUTS, INPUTS, GROUP = 7, 32, 8


def drawn(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return weights that lie to one side of 0 in some groups, and the mean products of correlated inputs of unequal size."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(OUTPUTS, INPUTS, generator=draw, dtype=torch.float64) + torch.linspace(-2, 2, INPUTS)
    mixing = torch.randn(INPUTS, INPUTS, generator=draw, dtype=torch.float64) / 4 + torch.eye(INPUTS)
    inputs = torch.randn(200, INPUTS, generator=draw, dtype=torch.float64) @ mixing
    inputs *= torch.rand(INPUTS, generator=draw, dtype=torch.float64).exp()[torch.randperm(INPUTS, generator=draw)] ** 2
    return weight, inputs.T @ inputs / 200


def grid_slowly(group: np.ndarray, bits: int, symmetric: bool) -> tuple[float, int]:
    lowest = -(2 ** (bits - 1))
    if symmetric:
        return float(np.float32(np.abs(group).max() / ((2**bits - 1) / 2))), 0
    low, high = min(0.0, group.min()), max(0.0, group.max())
    scale = float(np.float32((high - low) / (2**bits - 1)))
    return scale, int(np.clip(np.round(lowest - low / scale), lowest, -lowest - 1))


def rounded_slowly(value: float, scale: float, zero: int, bits: int) -> float:
    lowest = -(2 ** (bits - 1))
    code = int(np.clip(np.round(value / scale + zero), lowest, -lowest - 1))
    return (code - zero) * scale


def gptq_slowly(weight: np.ndarray, gram: np.ndarray, bits: int, symmetric: bool, act_order: bool) -> np.ndarray:
    """Return the recursion's values: others make up for each input by the inverse of what remains of the Gram matrix."""
    damped = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(INPUTS)
    order = sorted(range(INPUTS), key=lambda i: -gram[i, i]) if act_order else list(range(INPUTS))
    out = weight.copy()
    for row in range(OUTPUTS):
        grids: dict[int, tuple[float, int]] = {}
        for place, i in enumerate(order):
            here = i // GROUP
            if here not in grids:
                whole = weight[row] if act_order else out[row]
                grids[here] = grid_slowly(whole[here * GROUP : (here + 1) * GROUP], bits, symmetric)
            rest = order[place:]
            inverse = np.linalg.inv(damped[np.ix_(rest, rest)])
            value = rounded_slowly(out[row, i], *grids[here], bits)
            out[row, rest] -= (out[row, i] - value) / inverse[0, 0] * inverse[0]
            out[row, i] = value
    return out


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_that_of_loops_and_zero_stays_zero(bits: int) -> None:
    weight, _ = drawn()
    weight[2, 5], weight[3, 8:16] = 0.0, 0.0
    made = round_to_nearest(weight, bits, GROUP, torch.float32, symmetric=False)
    assert made.zero_OG is not None and made.zero_OG.dtype == torch.int8
    found = dequantised(made, torch.float64).numpy()
    for row in range(OUTPUTS):
        for start in range(0, INPUTS, GROUP):
            group = weight[row, start : start + GROUP].numpy()
            if not group.any():
                assert not found[row, start : start + GROUP].any()
                continue
            scale, zero = grid_slowly(group, bits, symmetric=False)
            expected = [rounded_slowly(value, scale, zero, bits) for value in group]
            np.testing.assert_allclose(found[row, start : start + GROUP], expected, rtol=1e-6)
            assert np.abs(found[row, start : start + GROUP] - group).max() <= scale * 1.0001
    assert found[2, 5] == 0.0
    symmetric = dequantised(round_to_nearest(weight, bits, GROUP, torch.float32), torch.float64).numpy()
    assert np.square(found - weight.numpy()).sum() < 0.7 * np.square(symmetric - weight.numpy()).sum()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_library_of_the_format_reads_the_same_values(bits: int, dtype: torch.dtype) -> None:
    weight, gram = drawn(1)
    made = gptq(weight, bits, GROUP, gram, dtype, symmetric=False, act_order=True)
    tensors = packed(made, bits)
    assert tensors[ZERO_POINT].shape == (-(-OUTPUTS * bits // 32), INPUTS // GROUP)
    args = QuantizationArgs(num_bits=bits, strategy="group", group_size=GROUP, symmetric=False)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    library = PackedQuantizationCompressor.decompress(dict(tensors), scheme)["weight"]
    assert library.dtype == dtype and torch.equal(library, dequantised(made, dtype))
    again = unpacked(tensors, bits, GROUP, False)
    assert all(torch.equal(a, b) for a, b in zip(again, made, strict=True))  # type: ignore[arg-type]  # neither lacks zero points


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("symmetric", [False, True])
def test_gptq_is_the_recursion_or_what_is_better(symmetric: bool, act_order: bool) -> None:
    weight, gram = drawn(2)
    slow = gptq_slowly(weight.numpy(), gram.numpy(), 4, symmetric, act_order)
    nearest = dequantised(round_to_nearest(weight, 4, GROUP, torch.float32, symmetric), torch.float64)
    found = dequantised(gptq(weight, 4, GROUP, gram, torch.float32, None, symmetric, act_order), torch.float64)
    taken = 0
    for row in range(OUTPUTS):
        losses = [float((weight[row] - w) @ gram @ (weight[row] - w)) for w in (torch.tensor(slow[row]), nearest[row])]
        best = torch.tensor(slow[row]) if losses[0] < losses[1] else nearest[row]
        taken += losses[0] < losses[1]
        torch.testing.assert_close(found[row], best, rtol=1e-5, atol=1e-6)
    assert taken >= OUTPUTS - 1, "the recursion is hardly ever worse"


def test_zeros_stay_zeros_beside_zero_points() -> None:
    weight, gram = drawn(3)
    zero = torch.rand(weight.shape, generator=torch.Generator().manual_seed(4)) < 0.5
    for act_order in (False, True):
        made = gptq(weight, 4, GROUP, gram, torch.float32, zero, symmetric=False, act_order=act_order)
        values = dequantised(made, torch.float64)
        assert not values[zero].any() and values[~zero].any()


def test_only_gptq_has_an_order() -> None:
    with pytest.raises(ValueError, match="act_order is the order in which gptq takes inputs; awq"):
        Quantisation(kernel="awq", act_order=True)
