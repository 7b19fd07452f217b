"""Routed experts in the form in which they are stored: factors stay factors, widths may differ.

Matrices in few bits are the only ones that are held as what they stand for. The module serves transformers models
(``bench.models.load``) and vLLM (``bench.serving.plugin``), where each of several devices holds a part of every expert's
channels. The host loops over the experts, or, once loading is finished, grouped products take all of them
(``bench.experts.grouped``).

Letters: T tokens, K experts per token, P (token, expert) pairs sorted by expert, N pairs of one expert, D hidden size,
F expert width, R rank, X inputs of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.experts.grouped import GroupedExperts, Parts, misfit
from methods.framework.forms import COLUMNS, LEFT, MIX, PACKED, RIGHT, SHARED_PREFIX, part_of
from methods.framework.inventory import EXPERT_ROLES, ExpertForm, LayerInventory, TensorEntry
from methods.kernels.experts import Assignment
from methods.kernels.shared_bases import FUNCTIONS

GATE, UP, DOWN = EXPERT_ROLES
BASE_OF_DOWN = f"{SHARED_PREFIX}down"


@dataclass(frozen=True, slots=True)
class Shard:
    """Which channels of every expert a device holds: those from ``F rank / size`` to ``F (rank + 1) / size``, rounded down.

    Each device gives a part of the sum over channels, so the outputs of all devices add up to the layer's. Widths need not
    be multiples of ``size``, nor equal.
    """

    rank: int = 0
    size: int = 1

    def channels(self, width: int) -> slice:
        """Return the channels of an expert of ``width`` channels."""
        return slice(width * self.rank // self.size, width * (self.rank + 1) // self.size)


ALL = Shard()
"""Every channel is held here."""


class CompressedExperts(nn.Module):
    """Stands for the experts module of a stock MoE block, with the same arguments.

    Args:
        layer: what is stored for the layer.
        act: activation of the experts.
        dtype: of the parameters.
        shard: channels that are held here.
    """

    def __init__(
        self,
        layer: LayerInventory,
        act: Callable[[Tensor], Tensor],
        dtype: torch.dtype | None = None,
        shard: Shard = ALL,
    ) -> None:
        """Make parameters without values; ``load`` or whoever fills what ``stored`` returns gives them values.

        Args:
            layer: what the layer stores; it states a form.
            act: activation between gate and up.
            dtype: of the parameters; None takes torch's default.
            shard: the part of the channels that is held here.
        """
        super().__init__()
        assert layer.form is not None
        self.form: ExpertForm = layer.form
        self.num_experts = layer.experts
        self.act_fn = act
        self.shard = shard
        self.grouped: GroupedExperts | None = None
        roles = {entry.role: entry.shape for entry in layer.tensors}
        # A base of down that lacks columns is cut after loading, when it is known which of them are held here.
        self._cut_later = shard.size > 1 and f"{BASE_OF_DOWN}.{COLUMNS}" in roles
        self._width = roles[f"{SHARED_PREFIX}gate"][0] if self.form.base is not None else 0
        # Attributes of each expert's matrix: that of a whole one, or its left factor and what stands for the right one.
        self._held: dict[tuple[str, int], tuple[str, ...]] = {}
        self._shares = {role: _name(SHARED_PREFIX + role.partition(".")[2], None, "") for role in EXPERT_ROLES}
        for entry in layer.tensors:
            if not entry.role.startswith("expert."):
                continue
            role, part = part_of(entry)
            if part == COLUMNS:
                self.register_buffer(_name(role, None, part), torch.empty(entry.shape, dtype=torch.int64))
            elif part == PACKED:
                shape = (entry.shape[0], (entry.weights or 0) // entry.shape[0])
                self._add(role, "", entry.expert, shape, dtype).requires_grad_(False)
            elif part in ("", LEFT, RIGHT, MIX):
                self._add(role, part, entry.expert, entry.shape, dtype)

    def stored(self, role: str, expert: int | None) -> Tensor:
        """Return the parameter that holds what is stored under ``role`` of ``expert`` (None: what all share).

        Args:
            role: as in ``TensorEntry.role``: ``expert.gate`` for a whole matrix (also one that is packed on disk),
                ``expert.gate.left``, ``expert.shared_gate``, and so on.
            expert: its number in this checkpoint.

        Raises:
            ValueError: ``finish`` has stacked the matrices of the experts; a defect of the caller.
        """
        if self.grouped is not None and expert is not None:
            raise ValueError(f"{role} of expert {expert} is in a stack since finish(grouped=True); load it before")
        matrix, part = _split(role)
        tensor: Tensor = getattr(self, _name(matrix, expert, part))
        return tensor

    @torch.no_grad()
    def load(self, role: str, expert: int | None, tensor: Tensor) -> None:
        """Copy what is held here of a stored tensor; arguments as for ``stored``.

        Args:
            role: as in the inventory.
            expert: index; None for what the experts share.
            tensor: whole, as it is stored.
        """
        axis = self._channel_axis(*_split(role))
        if axis is not None:
            own = self.shard.channels(tensor.shape[axis])
            tensor = tensor.narrow(axis, own.start, own.stop - own.start)
        self.stored(role, expert).copy_(tensor)

    def looped_because(self) -> str | None:
        """Return why the layer cannot be held for grouped products; None: it can be, or is."""
        if self.grouped is not None:
            return None
        if self.form.bases is not None:
            return "its matrices are mixed from shared bases at every call"
        for role in EXPERT_ROLES:
            factored = sum(len(self._held[role, expert]) == 2 for expert in range(self.num_experts))
            if 0 < factored < self.num_experts:
                return f"{role} is factored for {factored} of {self.num_experts} experts and whole for the others"
        return misfit(self._parts())

    @torch.no_grad()
    def finish(self, grouped: bool = False) -> None:
        """Bring what was loaded into the shape in which it is used.

        The base of down, where it lacks columns, could not be cut to the channels of this device before. Nothing more is done
        unless ``grouped``.

        Args:
            grouped: whether to hold the matrices of all experts as stacks for grouped products, unless ``looped_because`` has a
                reason not to. The stacks replace what ``stored`` and ``load`` know of the experts, and do not learn.
        """
        self._cut()
        if not grouped or self.grouped is not None or self.looped_because() is not None:
            return
        parts = self._parts()
        for name in (name for names in self._held.values() for name in names):
            delattr(self, name)
        self.grouped = GroupedExperts(parts, self.act_fn)

    def _cut(self) -> None:
        """Cut the base of down where it lacks columns and is not cut yet."""
        if not self._cut_later:
            return
        self._cut_later = False
        own = self.shard.channels(self._width)
        columns_C, base_DC = self.stored(f"{BASE_OF_DOWN}.{COLUMNS}", None), self.stored(BASE_OF_DOWN, None)
        here_C = (columns_C >= own.start) & (columns_C < own.stop)
        setattr(self, _name(BASE_OF_DOWN, None, COLUMNS), columns_C[here_C] - own.start)
        setattr(self, _name(BASE_OF_DOWN, None, ""), nn.Parameter(base_DC[:, here_C], base_DC.requires_grad))

    def _parts(self) -> Parts:
        """Return the matrices of all experts, by role: whole ones, or left and right factors."""
        experts = range(self.num_experts)
        return {
            role: [
                [getattr(self, name) for name in names]
                for names in zip(*(self._held[role, expert] for expert in experts), strict=True)
            ]
            for role in EXPERT_ROLES
        }

    def forward(self, hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of the experts' outputs, shape (T, D); indices from the number of experts on add nothing.

        Args:
            hidden_TD: inputs, one row a token.
            index_TK: experts of each token.
            weights_TK: what their outputs are multiplied by.
        """
        if self.grouped is not None:
            shared = None if self.form.base is None else self._shared
            grouped_TD: Tensor = self.grouped(hidden_TD, index_TK, weights_TK, shared)
            return grouped_TD
        pairs = Assignment.of(index_TK, weights_TK, self.num_experts)
        counts = [pairs.count(expert) for expert in range(self.num_experts)]
        hit = [expert for expert, count in enumerate(counts) if count]
        if not hit:
            return torch.zeros_like(hidden_TD)
        token_P, weight_P1 = pairs.tokens[: sum(counts)], pairs.gates[: sum(counts), None]
        own = [counts[expert] for expert in hit]
        x_ND = hidden_TD[token_P].split(own)
        gate_NF, up_NF = (
            [self._product(role, expert, x) for expert, x in zip(hit, x_ND, strict=True)] for role in (GATE, UP)
        )
        channels_NF = self._channels(gate_NF, up_NF, hidden_TD, token_P, own)
        outputs_ND = [self._product(DOWN, expert, x) for expert, x in zip(hit, channels_NF, strict=True)]
        out_TD = _sum(torch.cat(outputs_ND) * weight_P1, token_P, len(hidden_TD))
        if self.form.base is None:
            return out_TD.to(hidden_TD.dtype)
        # The base of down multiplies the weighted sum of channels once, instead of each expert's own.
        sum_TF = _sum(torch.cat(list(channels_NF)) * weight_P1, token_P, len(hidden_TD))
        return (out_TD + self._shared(DOWN, sum_TF.to(hidden_TD.dtype))).to(hidden_TD.dtype)

    def _channels(
        self,
        gate_NF: Sequence[Tensor],
        up_NF: Sequence[Tensor],
        hidden_TD: Tensor,
        token_P: Tensor,
        counts: Sequence[int],
    ) -> Sequence[Tensor]:
        """Return act(gate) * up of each expert that is hit, with the bases of gate and up added before."""
        if self.form.widths is not None:
            return [self.act_fn(gate) * up for gate, up in zip(gate_NF, up_NF, strict=True)]
        gate_PF, up_PF = torch.cat(list(gate_NF)), torch.cat(list(up_NF))
        if self.form.base is not None:
            gate_PF = gate_PF + self._shared(GATE, hidden_TD)[token_P]
            up_PF = up_PF + self._shared(UP, hidden_TD)[token_P]
        channels_NF: Sequence[Tensor] = (self.act_fn(gate_PF) * up_PF).split(list(counts))
        return channels_NF

    def _product(self, role: str, expert: int, x_NX: Tensor) -> Tensor:
        """Return the product of ``x_NX`` with an expert's own part of a matrix."""
        names = self._held[role, expert]
        if len(names) == 1:
            return F.linear(x_NX, getattr(self, names[0]))
        left, other = names
        right = getattr(self, other)
        return F.linear(
            F.linear(x_NX, right if self.form.bases is None else self._mixed(role, right)), getattr(self, left)
        )

    def _mixed(self, role: str, mix_C: Tensor) -> Tensor:
        """Return f of an expert's mixture of the bases, shape (R, X)."""
        assert self.form.bases is not None
        bases_CRX = getattr(self, self._shares[role])
        mixed_RX: Tensor = (mix_C.to(bases_CRX.dtype) @ bases_CRX.flatten(1)).view(bases_CRX.shape[1:])
        return FUNCTIONS[self.form.bases[2]](mixed_RX)

    def _shared(self, role: str, x_TX: Tensor) -> Tensor:
        """Return the product of ``x_TX`` with the base that all experts share; more inputs than those of the base are zeros."""
        name = self._shares[role]
        base, columns = getattr(self, name), getattr(self, f"{name}_{COLUMNS}", None)
        own_TC = x_TX.narrow(1, 0, base.shape[1]) if columns is None else x_TX.index_select(1, columns)
        return F.linear(own_TC, base)

    def _channel_axis(self, matrix: str, part: str) -> int | None:
        """Return the axis of a stored tensor along which an expert's channels lie; None where it has none, or not yet."""
        if part in (MIX, COLUMNS):
            return None
        if matrix.startswith(SHARED_PREFIX) and self.form.bases is not None:
            return None
        if matrix == BASE_OF_DOWN:
            return None if self._cut_later else 1
        if matrix == DOWN:
            return None if part == LEFT else 1
        return None if part == RIGHT else 0

    def _add(
        self, matrix: str, part: str, expert: int | None, shape: tuple[int, ...], dtype: torch.dtype | None
    ) -> nn.Parameter:
        """Register a parameter for what is held here of a stored tensor of ``shape``."""
        held, axis = list(shape), self._channel_axis(matrix, part)
        if axis is not None:
            own = self.shard.channels(shape[axis])
            held[axis] = own.stop - own.start
        parameter = nn.Parameter(torch.empty(held, dtype=dtype))
        name = _name(matrix, expert, part)
        self.register_parameter(name, parameter)
        if expert is not None:
            self._held[matrix, expert] = (*self._held.get((matrix, expert), ()), name)
        return parameter


def _sum(rows_PX: Tensor, token_P: Tensor, tokens: int) -> Tensor:
    """Return the rows of each token added up, shape (T, X)."""
    return rows_PX.new_zeros(tokens, rows_PX.shape[1]).index_add(0, token_P, rows_PX)


def _split(role: str) -> tuple[str, str]:
    """Return the matrix that a role belongs to, and the part of it."""
    return part_of(TensorEntry("", role, (), ""))


def _name(role: str, expert: int | None, part: str) -> str:
    """Return the attribute of a tensor."""
    words = (role.replace("expert.", ""), part, "" if expert is None else str(expert))
    return "_".join(word for word in words if word)
