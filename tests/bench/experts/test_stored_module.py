"""Experts in their stored form against whole matrices multiplied expert by expert and token by token, also in parts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.experts.formed_layer import formed_layer
from bench.experts.packing import packed
from bench.experts.stored_module import ALL, CompressedExperts, Shard
from bench.experts.whole import PART_NAMES, whole_expert
from methods.framework.forms import COLUMNS, PACKED, SCALE, SHAPE, part_of
from methods.framework.inventory import ExpertForm, LayerInventory, Packing
from methods.kernels.quantisation import round_to_nearest

E, D, WIDTH, T, K = 5, 16, 24, 11, 3

RANKS = ((3, 0, 5), (1, 2, 3), (0, 0, 0), (16, 7, 16), (4, 4, 1))
FORMS = {
    "widths": ExpertForm(widths=(24, 1, 7, 16, 3)),
    "ranks": ExpertForm(ranks=RANKS),
    "widths and ranks": ExpertForm(
        widths=(24, 2, 7, 16, 4), ranks=((3, 0, 5), (1, 2, 2), (0, 0, 0), (16, 7, 9), (4, 4, 1))
    ),
    "base": ExpertForm(ranks=tuple((e + 1, 2, 6 - e) for e in range(E)), base=(D, D, WIDTH)),
    "part of a base": ExpertForm(ranks=((2, 3, 4),) * E, base=(5, D, 9)),
    "bases": ExpertForm(bases=(2, 6, "silu")),
    "bases, tanh": ExpertForm(bases=(3, 4, "tanh")),
    "bits": ExpertForm(bits=Packing(4, 8)),
    "widths and bits": ExpertForm(widths=(24, 8, 16, 8, 24), bits=Packing(8, 8)),
}

Stored = dict[int | None, dict[str, Tensor]]


def layer_of(form: ExpertForm) -> LayerInventory:
    return formed_layer(form, E, D, WIDTH, K)


def random_tensors(layer: LayerInventory, seed: int = 0) -> Stored:
    """Return a tensor for everything that the layer stores, by expert (None: shared) and role."""
    draw = torch.Generator().manual_seed(seed)
    stored: Stored = {}
    for entry in layer.tensors:
        role, part = part_of(entry)
        own = stored.setdefault(entry.expert, {})
        if part == PACKED:
            assert layer.form is not None and layer.form.bits is not None
            inputs = (entry.weights or 0) // entry.shape[0]
            matrix = torch.randn(entry.shape[0], inputs, generator=draw)
            bits, group, _ = layer.form.bits
            values = packed(round_to_nearest(matrix, bits, group, torch.float32), bits)
            own |= {f"{role}.{part}": values[name] for part, name in PART_NAMES.items()}
        elif part == COLUMNS:
            width = WIDTH if role.endswith("down") else D
            own[entry.role] = torch.randperm(width, generator=draw)[: entry.shape[0]].sort().values.int()
        elif part not in (SCALE, SHAPE):
            own[entry.role] = torch.randn(entry.shape, generator=draw, dtype=torch.float64)
    return stored


def filled(layer: LayerInventory, stored: Stored, shard: Shard = ALL) -> CompressedExperts:
    module = CompressedExperts(layer, F.silu, torch.float64, shard)
    for expert, tensors in stored.items():
        for role, tensor in tensors.items():
            if role.endswith((f".{SCALE}", f".{SHAPE}")):
                continue
            if role.endswith(f".{PACKED}"):
                assert layer.form is not None
                names = ("gate_FD", "up_FD", "down_DF")
                matrix = role.removesuffix(f".{PACKED}")
                place = ["expert.gate", "expert.up", "expert.down"].index(matrix)
                module.load(matrix, expert, getattr(whole_expert(tensors, {}, layer.form), names[place]))
            else:
                module.load(role, expert, tensor)
    module.finish()
    return module


def routing(seed: int = 1, rows: int = E) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, experts (one of them never chosen, some tokens twice at one expert) and weights."""
    draw = torch.Generator().manual_seed(seed)
    index_TK = torch.randint(rows, (T, K), generator=draw)
    index_TK[index_TK == 1] = 3
    weights_TK = torch.rand(T, K, generator=draw, dtype=torch.float64)
    return torch.randn(T, D, generator=draw, dtype=torch.float64), index_TK, weights_TK


def by_hand(layer: LayerInventory, stored: Stored, hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
    assert layer.form is not None
    out_TD = torch.zeros(hidden_TD.shape, dtype=torch.float64)
    for t in range(len(hidden_TD)):
        for k in range(index_TK.shape[1]):
            expert = int(index_TK[t, k])
            if expert >= E:
                continue
            whole = whole_expert(stored[expert], stored.get(None, {}), layer.form)
            gate, up, down = (matrix.double() for matrix in whole)
            x_D = hidden_TD[t].double()
            out_TD[t] += weights_TK[t, k].double() * (down @ (F.silu(gate @ x_D) * (up @ x_D)))
    return out_TD


@pytest.mark.parametrize("name", FORMS)
def test_output_is_that_of_whole_matrices(name: str) -> None:
    layer = layer_of(FORMS[name])
    stored = random_tensors(layer)
    hidden_TD, index_TK, weights_TK = routing()
    found = filled(layer, stored)(hidden_TD, index_TK, weights_TK)
    expected = by_hand(layer, stored, hidden_TD, index_TK, weights_TK)
    assert found.dtype == hidden_TD.dtype
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("size", [2, 3, 30])
@pytest.mark.parametrize("name", FORMS)
def test_outputs_of_devices_add_up(name: str, size: int) -> None:
    """Widths are no multiples of the number of devices; with 30 some hold no channel of any expert."""
    layer = layer_of(FORMS[name])
    stored = random_tensors(layer)
    inputs = routing()
    whole = filled(layer, stored)
    parts = [filled(layer, stored, Shard(rank, size)) for rank in range(size)]
    total = torch.stack([part(*inputs) for part in parts]).sum(0)
    torch.testing.assert_close(total, whole(*inputs), rtol=1e-9, atol=1e-9)
    split = sum(p.numel() for p in parts[0].parameters())
    assert split < sum(p.numel() for p in whole.parameters()), "a device should hold less than all"


def test_shards_cover_all_channels_once() -> None:
    for width in (1, 5, 24, 31):
        for size in (1, 2, 3, 7, 40):
            found = [c for rank in range(size) for c in range(width)[Shard(rank, size).channels(width)]]
            assert found == list(range(width))


@pytest.mark.parametrize("name", ["widths", "ranks", "part of a base", "bases"])
def test_nothing_but_what_is_stored_is_held(name: str) -> None:
    layer = layer_of(FORMS[name])
    module = CompressedExperts(layer, F.silu)
    held = sum(tensor.numel() for tensor in (*module.parameters(), *module.buffers()))
    assert held == sum(entry.numel for entry in layer.tensors)


@pytest.mark.parametrize("name", ["widths", "part of a base", "bases"])
def test_indices_behind_the_experts_add_nothing(name: str) -> None:
    layer = layer_of(FORMS[name])
    stored = random_tensors(layer)
    module = filled(layer, stored)
    hidden_TD, index_TK, weights_TK = routing(rows=E + 2)
    assert int(index_TK.max()) >= E
    found = module(hidden_TD, index_TK, weights_TK)
    expected = by_hand(layer, stored, hidden_TD, index_TK, weights_TK)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    nobody = module(hidden_TD, torch.full_like(index_TK, E), weights_TK)
    assert torch.equal(nobody, torch.zeros_like(hidden_TD))


def test_sums_are_wide_and_the_result_is_of_the_type_of_the_inputs() -> None:
    """In bfloat16 the error is that of rounding products, not of adding K of them in bfloat16."""
    layer = layer_of(FORMS["widths"])
    stored = random_tensors(layer)
    module = filled(layer, stored).to(torch.bfloat16)
    hidden_TD, index_TK, weights_TK = routing()
    with torch.no_grad():
        found = module(hidden_TD.bfloat16(), index_TK, weights_TK.float())
    expected = by_hand(layer, stored, hidden_TD, index_TK, weights_TK)
    assert found.dtype == torch.bfloat16
    assert float((found.double() - expected).abs().max()) < 0.02 * float(expected.abs().max())


def test_factors_learn_and_integers_do_not() -> None:
    layer = layer_of(FORMS["part of a base"])
    module = filled(layer, random_tensors(layer))
    module(*routing()).square().sum().backward()
    idle = {name for name, weight in module.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert idle == {name for name, _ in module.named_parameters() if name.endswith("_1")}, "expert 1 has no token"
    integers = CompressedExperts(layer_of(FORMS["bits"]), F.silu)
    assert not any(weight.requires_grad for weight in integers.parameters())
