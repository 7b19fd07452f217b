"""Scales of inputs: what they leave alone, what they protect, and that the search finds the best of its grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.kernels.awq import channel_scale, folded_norm, input_scale
from methods.kernels.quantisation import dequantised, round_to_nearest

Array = NDArray[np.float64]
TOKENS, HIDDEN, WIDTH, EXPERTS = 200, 64, 32, 4


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


def inputs_of(size: int, seed: int, tokens: int = TOKENS) -> Tensor:
    """Return inputs [tokens, size] whose channels are of very unequal size."""
    channels = torch.from_numpy(np.random.default_rng(seed).lognormal(sigma=1.2, size=size))
    return drawn(tokens, size, seed=seed + 100) * channels


def gram(inputs: Tensor) -> Tensor:
    return inputs.T @ inputs / max(len(inputs), 1)


def loss_slowly(weight: Tensor, scale: Tensor, inputs: Tensor, bits: int, group: int) -> float:
    """Return the mean over tokens of the squared change of the outputs, from the outputs themselves."""
    rounded = dequantised(round_to_nearest(weight * scale, bits, group, torch.bfloat16), torch.float64)
    return float(((inputs / scale) @ rounded.T - inputs @ weight.T).square().sum() / len(inputs))


def grid_slowly(magnitudes: list[float]) -> list[list[float]]:
    """Return the 21 scales of the paper's formula, for inputs that all occur and do not differ ten thousandfold."""
    grid = []
    for step in range(21):
        powers = [a ** (step / 20) for a in magnitudes]
        grid.append([power / (max(powers) * min(powers)) ** 0.5 for power in powers])
    return grid


@pytest.mark.parametrize(("bits", "group"), [(4, 16), (4, 64), (8, 32)])
@pytest.mark.parametrize("seed", range(3))
def test_the_search_finds_the_best_scale_of_the_grid(bits: int, group: int, seed: int) -> None:
    tokens = [150, 20, 70]
    inputs = [inputs_of(HIDDEN, seed, count) for count in tokens]
    weights = [drawn(24, HIDDEN, seed=seed + 10 + place) for place in range(3)]
    magnitude = torch.cat(inputs).abs().mean(dim=0)
    found = input_scale(weights, [gram(x) for x in inputs], magnitude, bits, group, tokens, torch.bfloat16)
    totals = []
    for candidate in grid_slowly(magnitude.tolist()):
        scale = torch.tensor(candidate, dtype=torch.float32).double()
        losses = [loss_slowly(w, scale, x, bits, group) for w, x in zip(weights, inputs, strict=True)]
        totals.append(sum(count * lost for count, lost in zip(tokens, losses, strict=True)))
    best = int(np.argmin(totals))
    assert best > 0, "nothing to find"
    np.testing.assert_allclose(found.numpy(), grid_slowly(magnitude.tolist())[best], rtol=1e-6)
    assert float(found.max() * found.min()) == pytest.approx(1.0, rel=1e-5)


def test_each_expert_counts_by_its_tokens() -> None:
    """Two experts that want different exponents: the one with nearly all tokens has its way."""
    scales = []
    weights = [drawn(24, HIDDEN, seed=1), drawn(24, HIDDEN, seed=2)]
    weights[1][:, ::2] *= 8.0
    inputs = [inputs_of(HIDDEN, 3), inputs_of(HIDDEN, 4)]
    grams, magnitude = [gram(x) for x in inputs], inputs[0].abs().mean(dim=0)
    for tokens in ([1e6, 1.0], [1.0, 1e6], [1e6, 0.0], [0.0, 1e6]):
        scales.append(input_scale(weights, grams, magnitude, 4, 32, tokens, torch.bfloat16))
    assert torch.equal(scales[0], scales[2]) and torch.equal(scales[1], scales[3])
    assert not torch.equal(scales[0], scales[1])


@pytest.mark.parametrize("bits", [4, 8])
def test_the_loss_is_never_above_that_of_rounding(bits: int) -> None:
    for seed in range(6):
        inputs, weight = inputs_of(HIDDEN, seed), drawn(24, HIDDEN, seed=seed + 20)
        if seed % 2:
            inputs = inputs / inputs.abs().mean(dim=0)  # no channel stands out, so there is little to gain
        scale = input_scale([weight], [gram(inputs)], inputs.abs().mean(dim=0), bits, 32, [TOKENS], torch.bfloat16)
        rounding = loss_slowly(weight, torch.ones(HIDDEN, dtype=torch.float64), inputs, bits, 32)
        assert loss_slowly(weight, scale.double(), inputs, bits, 32) <= rounding * (1 + 1e-9)


def test_a_channel_that_stands_out_is_protected() -> None:
    inputs, weight = drawn(TOKENS, HIDDEN, seed=5), drawn(24, HIDDEN, seed=6)
    inputs[:, 17] *= 100.0
    weight[:, 17] *= 0.2
    scale = input_scale([weight], [gram(inputs)], inputs.abs().mean(dim=0), 4, 64, [TOKENS], torch.bfloat16)
    assert int(scale.argmax()) == 17 and float(scale[17]) > 2.0

    def error(factor: Tensor) -> Tensor:
        made = dequantised(round_to_nearest(weight * factor, 4, 64, torch.bfloat16), torch.float64) / factor
        return (made - weight)[:, 17].abs().mean()

    assert float(error(scale.double())) < 0.5 * float(error(torch.ones(HIDDEN, dtype=torch.float64)))
    ones = torch.ones(HIDDEN, dtype=torch.float64)
    assert loss_slowly(weight, scale.double(), inputs, 4, 64) < 0.25 * loss_slowly(weight, ones, inputs, 4, 64)


def test_inputs_of_equal_size_are_not_scaled() -> None:
    scale = input_scale(
        [drawn(8, 32, seed=7)], [torch.eye(32).double()], torch.full((32,), 3.0), 4, 16, [5], torch.bfloat16
    )
    assert torch.equal(scale, torch.ones(32))


@pytest.mark.parametrize("magnitude", ["all", "one", "tiny"])
def test_inputs_that_do_not_occur_are_not_scaled_and_all_scales_are_sound(magnitude: str) -> None:
    inputs, weight = inputs_of(HIDDEN, 8), drawn(24, HIDDEN, seed=9)
    absent = torch.arange(HIDDEN) % 5 == 0
    if magnitude == "all":
        inputs[:] = 0.0
    elif magnitude == "one":
        inputs[:, absent] = 0.0
    else:
        inputs[:, absent] *= 1e-30
    a = inputs.abs().mean(dim=0)
    scale = input_scale([weight], [gram(inputs)], a, 4, 32, [TOKENS], torch.bfloat16)
    assert scale.dtype == torch.float32 and scale.isfinite().all() and (scale > 0).all()
    if magnitude == "tiny":
        assert (scale[absent] == scale.min()).all()
        assert 1e-4 <= float(scale.min() / scale.max()) < 1.0
    else:
        assert (scale[absent] == 1.0).all()
        assert (scale != 1.0).any() == (magnitude == "one")


def test_an_expert_without_tokens_is_not_scaled() -> None:
    down, nothing = drawn(HIDDEN, WIDTH, seed=10), torch.zeros(WIDTH)
    scale = channel_scale(down, torch.zeros(WIDTH, WIDTH), nothing, 4, 16, torch.bfloat16)
    assert torch.equal(scale, torch.ones(WIDTH))
    scale = input_scale([down], [torch.eye(WIDTH)], torch.rand(WIDTH), 4, 16, [0.0], torch.bfloat16)
    assert torch.equal(scale, torch.ones(WIDTH))


class Streamed(list[Tensor]):
    """Counts reads, and that no other place is read in between."""

    def __init__(self, values: list[Tensor], log: list[int]) -> None:
        super().__init__(values)
        self.log = log

    def __getitem__(self, place):  # type: ignore[no-untyped-def]  # takes any index, as a tensor does
        self.log.append(place)
        return super().__getitem__(place)


def test_experts_are_read_one_at_a_time_and_once() -> None:
    log: list[int] = []
    weights = Streamed([drawn(8, 32, seed=place) for place in range(4)], log)
    grams = Streamed([gram(inputs_of(32, place)) for place in range(4)], log)
    input_scale(weights, grams, torch.rand(32) + 0.1, 4, 16, [3, 0, 1, 2], torch.bfloat16)
    assert log == [0, 0, 2, 2, 3, 3]


class Layer:
    """A MoE layer with a gated shared expert behind a norm, in double precision; experts' outputs are softmax-weighted."""

    def __init__(self, seed: int) -> None:
        self.norm = drawn(HIDDEN, seed=seed).abs() + 0.1
        self.router = drawn(EXPERTS, HIDDEN, seed=seed + 1)
        self.gates = [drawn(WIDTH, HIDDEN, seed=seed + 2 + e) for e in range(EXPERTS + 1)]  # the last one is shared
        self.ups = [drawn(WIDTH, HIDDEN, seed=seed + 20 + e) for e in range(EXPERTS + 1)]
        self.downs = [drawn(HIDDEN, WIDTH, seed=seed + 40 + e) for e in range(EXPERTS + 1)]
        self.shared_gate = drawn(1, HIDDEN, seed=seed + 60)

    def logits(self, hidden: Tensor) -> Tensor:
        return self.seen(hidden) @ self.router.T

    def seen(self, hidden: Tensor) -> Tensor:
        return hidden / hidden.square().mean(dim=-1, keepdim=True).sqrt() * self.norm

    def channels(self, hidden: Tensor, expert: int) -> Tensor:
        x = self.seen(hidden)
        return torch.nn.functional.silu(x @ self.gates[expert].T) * (x @ self.ups[expert].T)

    def __call__(self, hidden: Tensor) -> Tensor:
        gates = [
            *self.logits(hidden).softmax(dim=-1).unbind(-1),
            (self.seen(hidden) @ self.shared_gate.T).sigmoid()[:, 0],
        ]
        outputs = [self.channels(hidden, e) @ self.downs[e].T for e in range(EXPERTS + 1)]
        return torch.stack([gate[:, None] * output for gate, output in zip(gates, outputs, strict=True)]).sum(dim=0)

    def scale_inputs(self, scale: Tensor) -> None:
        self.norm, scale = folded_norm(self.norm, scale)
        self.router, self.shared_gate = self.router * scale, self.shared_gate * scale
        self.gates = [gate * scale for gate in self.gates]
        self.ups = [up * scale for up in self.ups]

    def scale_channels(self, expert: int, scale: Tensor) -> None:
        self.ups[expert] = self.ups[expert] / scale[:, None]
        self.downs[expert] = self.downs[expert] * scale


def searched(layer: Layer, hidden: Tensor) -> tuple[Tensor, list[Tensor]]:
    x = layer.seen(hidden)
    both = [torch.cat(pair) for pair in zip(layer.gates[:EXPERTS], layer.ups[:EXPERTS], strict=True)]
    inputs = input_scale(both, [gram(x)] * EXPERTS, x.abs().mean(0), 4, 32, [1] * EXPERTS, torch.bfloat16)
    channels = []
    for expert in range(EXPERTS):
        a = layer.channels(hidden, expert)
        channels.append(channel_scale(layer.downs[expert], gram(a), a.abs().mean(0), 4, 16, torch.bfloat16))
    return inputs, channels


def test_scaling_leaves_the_layer_and_its_routing_as_they_are() -> None:
    hidden, layer = inputs_of(HIDDEN, 11), Layer(70)
    before, logits = layer(hidden), layer.logits(hidden)
    inputs, channels = searched(layer, hidden)
    assert (inputs != 1).any() and all((scale != 1).any() for scale in channels)
    for expert, scale in enumerate(channels):
        layer.scale_channels(expert, scale)
    layer.scale_inputs(inputs)
    torch.testing.assert_close(layer(hidden), before, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(layer.logits(hidden), logits, rtol=1e-11, atol=1e-11)


def test_a_layer_rounded_after_scaling_is_closer_to_itself() -> None:
    hidden, errors = inputs_of(HIDDEN, 12), []
    for scaled in (True, False):
        layer = Layer(80)
        before = layer(hidden)
        inputs, channels = searched(layer, hidden)
        if scaled:
            for expert, scale in enumerate(channels):
                layer.scale_channels(expert, scale)
            layer.scale_inputs(inputs)
        for matrices, group in ((layer.gates, 32), (layer.ups, 32), (layer.downs, 16)):
            for expert in range(EXPERTS):
                rounded = round_to_nearest(matrices[expert], 4, group, torch.bfloat16)
                matrices[expert] = dequantised(rounded, torch.float64)
        errors.append(float((layer(hidden) - before).square().mean()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str)
def test_the_scale_makes_up_for_the_rounding_of_the_norm(dtype: torch.dtype) -> None:
    norm = (drawn(HIDDEN, seed=13).abs() + 0.1).to(dtype)
    norm[5] = 0.0
    wanted = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(0)) + 0.5
    divided, scale = folded_norm(norm, wanted)
    assert divided.dtype == dtype and float(divided[5]) == 0.0 and float(scale[5]) == float(wanted[5])
    tiny = 1e-15 if dtype == torch.float64 else 2e-7
    torch.testing.assert_close(divided.double() * scale.double(), norm.double(), rtol=tiny, atol=0.0)
    torch.testing.assert_close(scale.double(), wanted.double(), rtol=2 * torch.finfo(dtype).eps, atol=0.0)
    assert torch.equal(folded_norm(norm, torch.ones(HIDDEN))[0], norm), "no scale, no change"
    assert torch.equal(folded_norm(norm, torch.ones(HIDDEN))[1].double(), torch.ones(HIDDEN).double())


def test_a_tall_matrix_is_judged_by_rows_that_stand_for_all() -> None:
    """Beside a small matrix it counts with all its rows, though every third of them is looked at."""
    tokens = [40, 40]
    inputs = [inputs_of(16, 5, 40), drawn(40, 16, seed=9)]
    tall = drawn(256, 16, seed=7).repeat_interleave(3, dim=0)
    small = 5 * drawn(8, 16, seed=8)
    magnitude = inputs[0].abs().mean(dim=0)
    grams = [gram(x) for x in inputs]
    found = input_scale([tall, small], grams, magnitude, 4, 16, tokens, torch.bfloat16)
    whole = input_scale(
        [*[tall[::3]] * 3, small], [*[grams[0]] * 3, grams[1]], magnitude, 4, 16, [40] * 4, torch.bfloat16
    )
    light = input_scale([tall[::3], small], grams, magnitude, 4, 16, tokens, torch.bfloat16)
    assert torch.equal(found, whole) and not torch.equal(found, light)
