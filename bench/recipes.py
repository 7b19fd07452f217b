"""Tensors of a compressed checkpoint that are computed: merged experts, averaged router rows, constant vectors.

Letters: D hidden size, F expert width, C constants, E routed experts.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from bench.checkpoint import Checkpoint
from bench.storage import TORCH_DTYPES
from methods.errors import StatsError
from methods.inventory import EXPERT_ROLES, Inventory, TensorEntry
from methods.kernels.merging import ExpertMatrices, averaged, merged
from methods.plan import Merge, Plan
from methods.stats import Array, Stats
from methods.transfer import AveragedRows, Constants, MergedExpert, Transfer

CONSTANT_STATISTIC = "routed_output_mean"
"""Statistic whose rows stand for the experts that a plan replaces by constants."""


class Recipes:
    """Computes tensors of a result from those of its source, one merged expert in memory at a time.

    Args:
        checkpoint: the source.
        moments: statistics of the source, for constants.
    """

    def __init__(self, checkpoint: Checkpoint, moments: Stats | None) -> None:
        """Compute nothing yet."""
        self._checkpoint = checkpoint
        self._moments = moments
        self._last: tuple[tuple[int | None, Merge], ExpertMatrices] | None = None

    def tensor(self, transfer: Transfer) -> Tensor:
        """Return the values of a transfer with a recipe: computed in float32 (float64 from float64), then rounded."""
        recipe, dtype = transfer.recipe, TORCH_DTYPES[transfer.target.dtype]
        if isinstance(recipe, MergedExpert):
            matrices = self._merged(transfer.source.layer, recipe.merge)
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

    def _merged(self, layer: int | None, merge: Merge) -> ExpertMatrices:
        """Return a merged expert; the three matrices of one are asked for in a row and computed once."""
        if self._last is None or self._last[0] != (layer, merge):
            assert layer is not None
            self._last = None  # frees the one before
            self._last = (layer, merge), merged(merge, _Members(self._checkpoint, layer, merge.members))
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


def constants(moments: Stats | None, inventory: Inventory, layer: int, experts: Sequence[int]) -> Array:
    """Return the mean outputs of ``experts`` in decoder layer ``layer`` of ``inventory``, shape (C, D).

    Raises:
        StatsError: the statistics are missing, of another model, or not finite.
    """
    remedy = f"measure {CONSTANT_STATISTIC!r} on the source with `moebench calibrate`, and pass the result as `moments`"
    if moments is None or CONSTANT_STATISTIC not in moments.values:
        found = "none were passed" if moments is None else f"those at hand lack {CONSTANT_STATISTIC!r}"
        raise StatsError(
            f"the plan replaces experts by their mean output, whose values are in the statistics: {found}; {remedy}"
        )
    means_ED = moments.layer(CONSTANT_STATISTIC, layer)
    expected = (inventory.layers[layer].experts, inventory.hidden)
    if means_ED.shape != expected:
        raise StatsError(
            f"{CONSTANT_STATISTIC!r} of layer {layer} has shape {means_ED.shape}, but this model needs {expected}: the "
            f"statistics are of another model; {remedy}"
        )
    values_CD = means_ED[list(experts)]
    if not np.isfinite(values_CD).all():
        raise StatsError(f"{CONSTANT_STATISTIC!r} of layer {layer} holds values that are not finite; {remedy}")
    return values_CD


def moments_digest(plan: Plan, inventory: Inventory, moments: Stats | None) -> str | None:
    """Return the SHA-256 of the measured values that ``plan`` writes into its checkpoint; None where it writes none.

    Args:
        plan: in the coordinates of ``inventory``.
        inventory: the source.
        moments: statistics of the source.

    Raises:
        StatsError: as ``constants``.
    """
    if not plan.moments:
        return None
    digest = hashlib.sha256()
    for index, layer in enumerate(plan.layers):
        if layer.constants:
            values_CD = constants(moments, inventory, index, layer.constants)
            digest.update(f"{index} {layer.constants} {values_CD.shape}".encode())
            digest.update(np.ascontiguousarray(values_CD, dtype="<f8").tobytes())
    return digest.hexdigest()
