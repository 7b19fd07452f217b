"""The routed experts of a layer by grouped matrix products, which take the matrices of all experts at once.

No shape depends on the routing, and where the device has kernels for them nothing waits for it, so the pass can be recorded in
a CUDA graph.

Letters: T tokens, E experts, K experts per token, P (token, expert) pairs sorted by expert, D hidden size, F channels, R rank,
M and N rows and columns of a matrix, X inputs of one. F, R, M and N are the layer's largest, rounded up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.framework.inventory import EXPERT_ROLES

GATE, UP, DOWN = EXPERT_ROLES

Parts = Mapping[str, Sequence[list[Tensor]]]
"""For each role the matrices [out, in] of all experts: one list of whole ones, or left factors and then right factors."""

MOST_FILLING = 1.5
"""Bytes that a layer may take with its zeros, as a multiple of those without."""
ALIGNMENT = 16
"""Bytes of which the strides of grouped products must be multiples."""

TYPES = (torch.bfloat16, torch.float16, torch.float32)
"""Types of which there are grouped products."""

_grouped_mm: Callable[..., Tensor] = getattr(F, "grouped_mm", None) or torch._grouped_mm


def without_host(weight: Tensor) -> bool:
    """Return whether grouped products with ``weight`` are kernels of the device alone.

    PyTorch has them for bfloat16 on CUDA devices of compute capability 9 and 10. Elsewhere it copies the sizes of the groups
    to the host and multiplies group after group, including those without rows.
    """
    if not weight.is_cuda or weight.dtype != torch.bfloat16 or torch.version.cuda is None:
        return False
    return torch.cuda.get_device_capability(weight.device)[0] in (9, 10)


def preferred(weight: Tensor) -> bool:
    """Return whether experts with weights like this one are faster by grouped products than by a loop of the host.

    On a CPU PyTorch loops as well, but with less work between the products: faster from a few tokens on, slower for one
    (``bench.perf.experts``).
    """
    return without_host(weight) or (weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16))


def misfit(parts: Parts) -> str | None:
    """Return why matrices of this type and these shapes are not stacked; None: they can be."""
    lists = [matrices for of_role in parts.values() for matrices in of_role]
    first_MN = parts[GATE][-1][0]
    if first_MN.dtype not in TYPES:
        return f"there are no grouped products of {first_MN.dtype}"
    if first_MN.shape[1] * first_MN.element_size() % ALIGNMENT:
        return f"rows of {first_MN.shape[1]} elements are not a multiple of {ALIGNMENT} bytes"
    stored = sum(matrix.numel() for matrices in lists for matrix in matrices)
    filled = sum(len(matrices) * math.prod(_size(matrices)) for matrices in lists)
    if filled > MOST_FILLING * stored:
        return f"equal sizes would take {filled} elements instead of {stored}, more than {MOST_FILLING:g} times as many"
    return None


class GroupedExperts(nn.Module):
    """Holds the matrices of all experts of a layer as stacks without gradient.

    Matrices smaller than the layer's largest are filled up with zeros, which change no output. What multiplies the hidden
    states, right factors or whole matrices of gate and of up, is one stack, hence one product.

    Args:
        parts: its lists are emptied, so that each matrix can be freed once it is copied.
        act: activation of the experts; act(0) must be finite.
    """

    gate_left: nn.Parameter | None
    up_left: nn.Parameter | None
    down_left: nn.Parameter | None

    def __init__(self, parts: Parts, act: Callable[[Tensor], Tensor]) -> None:
        """Stack ``parts``, for which ``misfit`` found nothing."""
        super().__init__()
        self.num_experts = len(parts[DOWN][-1])
        self.act_fn = act
        self._split = [_size(parts[role][-1])[0] for role in (GATE, UP)]
        self.gate_up = _stack(parts[GATE][-1], parts[UP][-1])
        self.down = _stack(parts[DOWN][-1])
        for name, role in (("gate_left", GATE), ("up_left", UP), ("down_left", DOWN)):
            self.register_parameter(name, _stack(parts[role][0]) if len(parts[role]) == 2 else None)

    def forward(
        self,
        hidden_TD: Tensor,
        index_TK: Tensor,
        weights_TK: Tensor,
        shared: Callable[[str, Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return the weighted sum of the experts' outputs, (T, D); indices from the number of experts on add nothing.

        Args:
            hidden_TD: inputs.
            index_TK: experts of each token.
            weights_TK: their weights.
            shared: the product of a role's inputs, (T, X), with the base that all experts share; channels that are filled up
                come with the zeros. None: there is no base.
        """
        if not index_TK.numel():
            return torch.zeros_like(hidden_TD)
        expert_P, order_P = index_TK.flatten().sort(stable=True)
        numbers_E = torch.arange(self.num_experts, dtype=expert_P.dtype, device=expert_P.device)
        ends_E = torch.searchsorted(expert_P, numbers_E, right=True, out_int32=True)
        token_P = torch.div(order_P, index_TK.shape[1], rounding_mode="floor")
        inputs_PX = _product(hidden_TD.index_select(0, token_P), self.gate_up, ends_E).split(self._split, dim=1)
        gate_PF, up_PF = (
            x_PX if left is None else _product(x_PX, left, ends_E)
            for x_PX, left in zip(inputs_PX, (self.gate_left, self.up_left), strict=True)
        )
        if shared is not None:
            gate_PF = gate_PF + _widened(shared(GATE, hidden_TD), gate_PF.shape[1]).index_select(0, token_P)
            up_PF = up_PF + _widened(shared(UP, hidden_TD), up_PF.shape[1]).index_select(0, token_P)
        channels_PF = self.act_fn(gate_PF) * up_PF
        outputs_PD = _product(channels_PF, self.down, ends_E)
        if self.down_left is not None:
            outputs_PD = _product(outputs_PD, self.down_left, ends_E)
        out_TD = self._sum(outputs_PD, order_P, index_TK, weights_TK)
        if shared is None:
            return out_TD.to(hidden_TD.dtype)
        sum_TF = self._sum(channels_PF, order_P, index_TK, weights_TK)
        return (out_TD + shared(DOWN, sum_TF.to(hidden_TD.dtype))).to(hidden_TD.dtype)

    def _sum(self, rows_PX: Tensor, order_P: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of each token's rows, (T, X), in the order of its experts."""
        rows_TKX = rows_PX.new_empty(rows_PX.shape).index_copy_(0, order_P, rows_PX).view(*index_TK.shape, -1)
        # Rows behind those of the last expert are whatever the memory held, NaN as well, which no weight of 0 takes away.
        rows_TKX.masked_fill_((index_TK >= self.num_experts).unsqueeze(-1), 0.0)
        return (rows_TKX * weights_TK.unsqueeze(-1)).sum(dim=1)


def _product(x_PN: Tensor, stack_EMN: Tensor, ends_E: Tensor) -> Tensor:
    """Return the product of each row with the matrix of its expert, (P, M); rows from ``ends_E[-1]`` on are undefined."""
    return _grouped_mm(x_PN, stack_EMN.transpose(1, 2), offs=ends_E)


def _widened(x_TX: Tensor, columns: int) -> Tensor:
    """Return ``x_TX`` with zeros behind."""
    return F.pad(x_TX, (0, columns - x_TX.shape[1]))


def _size(matrices: Sequence[Tensor]) -> tuple[int, int]:
    """Return the rows and columns to which matrices are filled up: at least one aligned piece of each."""
    unit = ALIGNMENT // matrices[0].element_size()
    rows, columns = (max(1, *(matrix.shape[axis] for matrix in matrices)) for axis in (0, 1))
    return -(-rows // unit) * unit, -(-columns // unit) * unit


@torch.no_grad()
def _stack(*blocks: list[Tensor]) -> nn.Parameter:
    """Return the matrices of each expert, one block of rows below the other, shape (E, M, N); empties ``blocks``."""
    sizes = [_size(matrices) for matrices in blocks]
    stack_EMN = blocks[0][0].new_zeros(len(blocks[0]), sum(rows for rows, _ in sizes), sizes[0][1])
    start = 0
    for matrices, (rows, _) in zip(blocks, sizes, strict=True):
        for place_MN in reversed(stack_EMN.narrow(1, start, rows).unbind()):
            matrix_MN = matrices.pop()
            place_MN.narrow(0, 0, matrix_MN.shape[0]).narrow(1, 0, matrix_MN.shape[1]).copy_(matrix_MN)
        start += rows
    return nn.Parameter(stack_EMN, requires_grad=False)
