"""Tensors of a compressed checkpoint that are computed: merged and sparse experts, averaged router rows, constant vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor

from bench.checkpoint import Checkpoint
from bench.moments import constants, expert_moments
from bench.storage import TORCH_DTYPES
from methods.inventory import EXPERT_ROLES, Inventory, TensorEntry
from methods.kernels.merging import ExpertMatrices, align, averaged, merged
from methods.kernels.sparsity import InputMoments, sparsified
from methods.plan import Merge
from methods.stats import Stats
from methods.transfer import AveragedRows, Constants, MergedExpert, SparseExpert, Transfer

MadeExpert = SparseExpert | Merge
"""What an expert that is computed is made by."""


class Recipes:
    """Computes tensors of a result from those of its source, one computed expert in memory at a time.

    Args:
        checkpoint: the source.
        moments: statistics of the source, for constants and for sparsity.
    """

    def __init__(self, checkpoint: Checkpoint, moments: Stats | None) -> None:
        """Compute nothing yet."""
        self._checkpoint = checkpoint
        self._moments = moments
        self._last: tuple[tuple[int | None, MadeExpert], ExpertMatrices] | None = None

    def tensor(self, transfer: Transfer) -> Tensor:
        """Return the values of a transfer with a recipe: computed in float32 (float64 from float64), then rounded."""
        recipe, dtype = transfer.recipe, TORCH_DTYPES[transfer.target.dtype]
        if isinstance(recipe, (MergedExpert, SparseExpert)):
            expert = recipe if isinstance(recipe, SparseExpert) else recipe.merge
            matrices = self._made(transfer.source.layer, expert)
            return matrices[EXPERT_ROLES.index(transfer.source.role)].to(dtype)
        if isinstance(recipe, AveragedRows):
            return averaged(recipe, self._checkpoint.read(transfer.source)).to(dtype)
        assert isinstance(recipe, Constants)
        values = constants(self._moments, self._checkpoint.inventory, recipe.layer, recipe.experts)
        return torch.from_numpy(values).to(dtype)

    def bytes_of(self, transfer: Transfer) -> memoryview:
        """Return ``tensor(transfer)`` as bytes."""
        flat: Any = self.tensor(transfer).contiguous().reshape(-1).view(torch.uint8).numpy()
        return memoryview(flat)

    def _made(self, layer: int | None, expert: MadeExpert) -> ExpertMatrices:
        """Return an expert; its three matrices are asked for in a row and computed once."""
        if self._last is None or self._last[0] != (layer, expert):
            assert layer is not None
            self._last = None  # frees the one before
            if isinstance(expert, Merge):
                made = merged(expert, _Members(self._checkpoint, layer, expert.members))
            else:
                indices = expert.merge.members if expert.merge is not None else (expert.expert,)
                members = _Members(self._checkpoint, layer, indices)
                made = sparse_expert(expert, members, self._moments, self._checkpoint.inventory)
            self._last = (layer, expert), made
        return self._last[1]


class _Members(Sequence[ExpertMatrices]):
    """Experts of one layer, each read when it is asked for."""

    def __init__(self, checkpoint: Checkpoint, layer: int, experts: Sequence[int]) -> None:
        tensors = checkpoint.inventory.layers[layer].with_role(*EXPERT_ROLES)
        self._entries: dict[tuple[int | None, str], TensorEntry] = {(e.expert, e.role): e for e in tensors}
        self._checkpoint, self._experts = checkpoint, experts

    def __len__(self) -> int:
        return len(self._experts)

    @overload
    def __getitem__(self, place: int) -> ExpertMatrices: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[ExpertMatrices]: ...
    def __getitem__(self, place: int | slice) -> ExpertMatrices | Sequence[ExpertMatrices]:
        if isinstance(place, slice):
            return [self[index] for index in range(*place.indices(len(self)))]
        entries = (self._entries[self._experts[place], role] for role in EXPERT_ROLES)
        return ExpertMatrices(*(self._checkpoint.read(entry) for entry in entries))


def sparse_expert(
    recipe: SparseExpert, members: Sequence[ExpertMatrices], moments: Stats | None, inventory: Inventory
) -> ExpertMatrices:
    """Return a sparse expert, in float32 (float64 from float64).

    A merged expert is made sparse as it comes out of the merge, before anything is rounded.

    Args:
        recipe: which expert, and how.
        members: matrices of ``recipe.merge.members``, or of the expert itself, each of which may be read on access.
        moments: statistics of the source, of which those named in ``recipe.sparsity.moments`` are read.
        inventory: the source.

    Raises:
        StatsError: ``moments`` are missing, of another model, or not finite.
    """
    merge, names = recipe.merge, recipe.sparsity.moments
    gate, up, down = _wide(members[0]) if merge is None else merged(merge, members)
    inputs: InputMoments | None = None
    channels: InputMoments | None = None
    if names:
        made_of = [recipe.expert, *(m for m in (merge.members if merge else ()) if m != recipe.expert)]
        orders = {} if merge is None or merge.kernel != "aligned" else _orders(merge, members)
        inputs, channels = expert_moments(moments, inventory, recipe.layer, names, made_of, orders)
    both = sparsified(torch.cat([gate, up]), recipe.sparsity, _on(inputs, gate))  # one factorisation for the two
    gate, up = both.chunk(2)
    return ExpertMatrices(gate, up, sparsified(down, recipe.sparsity, _on(channels, down)))


def _orders(merge: Merge, members: Sequence[ExpertMatrices]) -> dict[int, Tensor]:
    """Return the order in which the hidden channels of each member went into the merge, as ``merged`` finds it."""
    reference = _wide(members[merge.members.index(merge.into)])
    return {
        member: align(reference, _wide(members[place]))
        for place, member in enumerate(merge.members)
        if member != merge.into
    }


def _wide(expert: ExpertMatrices) -> ExpertMatrices:
    dtype = torch.float64 if expert.gate_FD.dtype == torch.float64 else torch.float32
    return ExpertMatrices(*(matrix.to(dtype) for matrix in expert))


def _on(moments: InputMoments | None, weight: Tensor) -> InputMoments | None:
    """Return ``moments`` on the device of ``weight``."""
    if moments is None:
        return None
    return InputMoments(*(None if value is None else value.to(weight.device) for value in moments))
