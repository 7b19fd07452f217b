"""Experts by grouped products against the loop over them: values, what is held, and that nothing waits for the device."""

from __future__ import annotations

import copy
import re
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bench.experts import grouped as grouped_experts
from bench.experts.formed_layer import formed_layer
from bench.experts.grouped import preferred, without_host
from bench.experts.stored_module import ALL, CompressedExperts, Shard
from methods.framework.forms import COLUMNS, part_of
from methods.framework.inventory import ExpertForm, LayerInventory

E, D, WIDTH, T, K = 5, 32, 48, 11, 3

GROUPED = {
    "whole": ExpertForm(),
    "equal ranks": ExpertForm(ranks=((16, 16, 16),) * E),
    "unequal ranks": ExpertForm(ranks=((16, 9, 16), (12, 16, 11), (16, 16, 15), (13, 12, 16), (10, 16, 8))),
    "unequal widths": ExpertForm(widths=(48, 33, 47, 40, 29)),
    "widths and ranks": ExpertForm(widths=(48, 39, 47, 40, 35), ranks=((16, 24, 9),) * E),
    "down whole": ExpertForm(ranks=((16, 8, 0),) * E),
    "up whole": ExpertForm(ranks=((16, 0, 16),) * E),
    "base": ExpertForm(ranks=tuple((8 + e, 14, 16 - e) for e in range(E)), base=(D, D, WIDTH)),
    "part of a base": ExpertForm(ranks=((8, 16, 8),) * E, base=(5, D, 9)),
    "base of an odd width": ExpertForm(ranks=((8, 16, 8),) * E, base=(D, D, 43)),
}
LOOPED = {
    "whole and factored": (
        ExpertForm(ranks=((8, 8, 8), (8, 8, 0), (8, 8, 8), (8, 8, 8), (8, 8, 8))),
        "expert.down is factored for 4 of 5 experts and whole for the others",
    ),
    "bases": (ExpertForm(bases=(2, 8, "silu")), "its matrices are mixed from shared bases at every call"),
    "one wide expert": (
        ExpertForm(widths=(48, 8, 8, 8, 8)),
        "equal sizes would take 23040 elements instead of 7680, more than 1.5 times as many",
    ),
    "rank 1": (
        ExpertForm(ranks=((1, 1, 1),) * E),
        "equal sizes would take 4800 elements instead of 1200, more than 1.5 times as many",
    ),
}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of the largest output. Both ways round the same products, but add channels and experts up in another order."""


def layer_of(form: ExpertForm, hidden: int = D) -> LayerInventory:
    width = form.base[2] if form.base is not None and form.base[2] > 9 else WIDTH
    return formed_layer(form, E, hidden, width, K)


def looped(form: ExpertForm, dtype: torch.dtype, shard: Shard = ALL) -> CompressedExperts:
    """Return a layer with values that do not depend on the shard, finished for the loop."""
    layer, draw = layer_of(form), torch.Generator().manual_seed(0)
    module = CompressedExperts(layer, F.silu, dtype, shard)
    for entry in layer.tensors:
        role, part = part_of(entry)
        if part == COLUMNS:
            all_of_them = WIDTH if role.endswith("down") else D
            value = torch.randperm(all_of_them, generator=draw)[: entry.shape[0]].sort().values
        else:
            value = torch.randn(entry.shape, generator=draw) / entry.shape[-1] ** 0.5
        module.load(entry.role, entry.expert, value)
    module.finish()
    return module


def grouped(module: CompressedExperts) -> CompressedExperts:
    held = copy.deepcopy(module)
    held.finish(grouped=True)
    assert held.looped_because() is None and held.grouped is not None
    return held


def routing(dtype: torch.dtype, rows: int = E) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs, experts (one of them never chosen, some tokens twice at one expert) and float32 weights."""
    draw = torch.Generator().manual_seed(1)
    index_TK = torch.randint(rows, (T, K), generator=draw)
    index_TK[index_TK == 1] = 3
    return torch.randn(T, D, generator=draw).to(dtype), index_TK, torch.rand(T, K, generator=draw)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.dtype == expected.dtype and found.shape == expected.shape
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE[expected.dtype] * scale)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", GROUPED)
@torch.no_grad()
def test_output_is_that_of_the_loop(name: str, dtype: torch.dtype) -> None:
    module, inputs = looped(GROUPED[name], dtype), routing(dtype)
    expected = module(*inputs)
    assert float(expected.abs().max()) > 0.1
    held = grouped(module)
    assert_same(held(*inputs), expected)
    hidden_TD, index_TK, weights_TK = inputs
    assert_same(
        held(hidden_TD, index_TK.int(), weights_TK.to(dtype)), module(hidden_TD, index_TK, weights_TK.to(dtype))
    )


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("name", GROUPED)
@torch.no_grad()
def test_outputs_of_devices_add_up(name: str, size: int) -> None:
    inputs = routing(torch.float32)
    parts = [grouped(looped(GROUPED[name], torch.float32, Shard(rank, size))) for rank in range(size)]
    total = torch.stack([part(*inputs) for part in parts]).sum(0)
    assert_same(total, looped(GROUPED[name], torch.float32)(*inputs))


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", ["equal ranks", "unequal widths", "part of a base"])
@torch.no_grad()
def test_indices_behind_the_experts_add_nothing(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """The product leaves their rows undefined; here they are NaN."""
    stock = grouped_experts._grouped_mm

    def undefined(x_PN: Tensor, stack_ENM: Tensor, *, offs: Tensor) -> Tensor:
        product_PM = stock(x_PN, stack_ENM, offs=offs)
        product_PM[int(offs[-1]) :] = torch.nan
        return product_PM

    monkeypatch.setattr(grouped_experts, "_grouped_mm", undefined)
    hidden_TD, index_TK, weights_TK = routing(dtype, rows=E + 2)
    assert int(index_TK.max()) == E + 1
    module = looped(GROUPED[name], dtype)
    held = grouped(module)
    assert_same(held(hidden_TD, index_TK, weights_TK), module(hidden_TD, index_TK, weights_TK))
    nobody = torch.full_like(index_TK, E)
    assert torch.equal(held(hidden_TD, nobody, weights_TK), torch.zeros_like(hidden_TD))


@pytest.mark.parametrize("name", ["equal ranks", "base"])
@torch.no_grad()
def test_no_tokens_give_no_rows(name: str) -> None:
    held = grouped(looped(GROUPED[name], torch.float32))
    found = held(torch.empty(0, D), torch.empty(0, K, dtype=torch.int64), torch.empty(0, K))
    assert found.shape == (0, D)


@pytest.mark.parametrize("name", LOOPED)
@torch.no_grad()
def test_some_layers_stay_looped_and_say_why(name: str) -> None:
    form, reason = LOOPED[name]
    module = looped(form, torch.float32)
    expected = module(*routing(torch.float32))
    names = [name for name, _ in module.named_parameters()]
    module.finish(grouped=True)
    assert module.grouped is None and module.looped_because() == reason
    assert [name for name, _ in module.named_parameters()] == names
    assert torch.equal(module(*routing(torch.float32)), expected)


def test_layers_that_no_kernel_takes_stay_looped() -> None:
    odd = CompressedExperts(layer_of(GROUPED["whole"], hidden=36), F.silu, torch.bfloat16)
    assert odd.looped_because() == "rows of 36 elements are not a multiple of 16 bytes"
    assert CompressedExperts(layer_of(GROUPED["whole"], hidden=36), F.silu, torch.float32).looped_because() is None
    wide = CompressedExperts(layer_of(GROUPED["whole"]), F.silu, torch.float64)
    assert wide.looped_because() == "there are no grouped products of torch.float64"
    nothing = CompressedExperts(layer_of(GROUPED["whole"]), F.silu, torch.float32, Shard(0, 100))
    assert "instead of 0" in str(nothing.looped_because()), "a device without any channel"


@pytest.mark.parametrize(
    ("name", "elements"),
    [
        ("whole", 3 * E * D * WIDTH),
        ("equal ranks", 3 * E * 16 * (D + WIDTH)),
        ("unequal ranks", 3 * E * 16 * (D + WIDTH)),
        ("unequal widths", 3 * E * D * WIDTH),
        ("widths and ranks", E * (16 + 24 + 16) * (D + WIDTH)),
        ("down whole", E * (24 * (D + WIDTH) + D * WIDTH)),
        ("part of a base", E * 32 * (D + WIDTH) + 5 * WIDTH + D * WIDTH + 9 * D),
        ("base of an odd width", E * 32 * (D + 48) + 3 * D * 43),
    ],
)
def test_stacks_take_the_place_of_the_matrices(name: str, elements: int) -> None:
    """In bfloat16, whose sizes are rounded up to multiples of 8."""
    module = looped(GROUPED[name], torch.bfloat16)
    held = grouped(module)
    assert not [name for name, _ in held.named_parameters() if re.search(r"_\d+$", name)], "no matrix of one expert"
    assert sum(p.untyped_storage().nbytes() for p in held.parameters()) == 2 * elements
    assert held.grouped is not None and not any(p.requires_grad for p in held.grouped.parameters())
    with pytest.raises(ValueError, match=r"expert\.gate of expert 0 is in a stack"):
        held.stored("expert.gate", 0)
    moved = held.to("meta")
    assert all(p.is_meta for p in moved.parameters())


def test_matrices_are_freed_while_they_are_stacked(monkeypatch: pytest.MonkeyPatch) -> None:
    module = looped(GROUPED["equal ranks"], torch.float32)
    matrices = [weakref.ref(parameter) for parameter in module.parameters()]
    stack, left = grouped_experts._stack, []

    def counted(*blocks: list[Tensor]) -> nn.Parameter:
        stacked = stack(*blocks)
        left.append(sum(matrix() is not None for matrix in matrices))
        return stacked

    monkeypatch.setattr(grouped_experts, "_stack", counted)
    module.finish(grouped=True)
    assert left == [4 * E, 3 * E, 2 * E, E, 0]


class OnTheDevice(TorchDispatchMode):
    """Fails where an operation gives a tensor that is not on a CUDA device; names what ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.names.append(str(func))
        result = func(*args, **(kwargs or {}))
        devices = {leaf.device.type for leaf in tree_leaves(result) if isinstance(leaf, Tensor)}
        assert devices <= {"cuda"}, f"{func} gives a tensor on {devices}"
        return result


@pytest.mark.parametrize("tokens", [1, T])
@pytest.mark.parametrize("name", GROUPED)
@torch.no_grad()
def test_nothing_waits_for_the_device(name: str, tokens: int) -> None:
    """Fake tensors of a CUDA device have shapes and no values, so whatever needs a value on the host fails.

    The strides are checked as for the CUDA kernel.
    """
    module = looped(GROUPED[name], torch.bfloat16)
    held = grouped(module)

    def run(which: CompressedExperts) -> Tensor:
        tensors = {**dict(which.named_parameters()), **dict(which.named_buffers())}
        fakes = {name: torch.empty(t.shape, dtype=t.dtype, device="cuda") for name, t in tensors.items()}
        index_TK = torch.empty(tokens, K, dtype=torch.int32, device="cuda")
        weights_TK = torch.empty(tokens, K, device="cuda")
        found: Tensor = functional_call(which, fakes, (hidden_TD, index_TK, weights_TK))
        return found

    with FakeTensorMode(), OnTheDevice() as seen:
        hidden_TD = torch.empty(tokens, D, dtype=torch.bfloat16, device="cuda")
        with pytest.raises(DynamicOutputShapeException):
            run(module)
        found = run(held)
        assert found.shape == hidden_TD.shape and found.dtype == hidden_TD.dtype
    factored = sum(bool(rank) for rank in (module.form.ranks or ((0, 0, 0),))[0])
    assert sum("grouped_mm" in name for name in seen.names) == 2 + factored


@pytest.mark.parametrize(
    ("dtype", "capability", "cuda", "expected"),
    [
        (torch.bfloat16, (9, 0), "13.0", True),
        (torch.bfloat16, (10, 3), "13.0", True),
        (torch.float16, (9, 0), "13.0", False),
        (torch.bfloat16, (8, 0), "13.0", False),
        (torch.bfloat16, (12, 0), "13.0", False),
        (torch.bfloat16, (9, 4), None, False),
    ],
)
def test_only_some_devices_have_grouped_products(
    dtype: torch.dtype, capability: tuple[int, int], cuda: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not without_host(torch.empty(1, dtype=torch.bfloat16)), "a CPU loops"
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    with FakeTensorMode():
        assert without_host(nn.Parameter(torch.empty(1, dtype=dtype, device="cuda"))) is expected


def test_a_cpu_multiplies_groups_in_the_types_that_it_has_kernels_for() -> None:
    assert preferred(torch.empty(1)) and preferred(torch.empty(1, dtype=torch.bfloat16))
    assert not preferred(torch.empty(1, dtype=torch.float64)) and not preferred(torch.empty(1, dtype=torch.float16))
