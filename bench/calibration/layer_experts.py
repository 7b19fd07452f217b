"""The routed experts of one decoder layer as a plan leaves them, one in memory at a time.

Shape letters: D hidden size, F expert width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from bench.calibration.weights import MlpWeights, WeightReader, expert_entries
from methods.errors import RefusedError
from methods.inventory import LayerInventory, TensorEntry
from methods.kernels.merging import ExpertMatrices, merged
from methods.plan import LayerPlan


class LayerExperts:
    """Experts that stay, by their new number; a merged one is computed when it is read."""

    def __init__(self, weights: WeightReader, layer: LayerInventory, plan: LayerPlan) -> None:
        """Read nothing yet.

        Raises:
            RefusedError: the plan makes the experts sparse, which a running layer cannot do without its moments.
        """
        if plan.sparsity is not None:
            raise RefusedError("sparse experts cannot be run while they are measured; write the checkpoint and open it")
        self._weights, self._entries = weights, expert_entries(layer)
        self._kept = range(layer.experts) if plan.experts is None else plan.experts
        self._merges = {merge.into: merge for merge in plan.merges}

    def __len__(self) -> int:
        """Return the number of experts."""
        return len(self._kept)

    def read(self, number: int) -> MlpWeights:
        """Return an expert; the one that was read before is gone."""
        expert = self._kept[number]
        entries = self._entries[expert]
        merge = self._merges.get(expert)
        if merge is None:
            return self._weights.read_mlp("expert", *entries)
        matrices = merged(merge, _Members(self._weights, [self._entries[member] for member in merge.members]))
        rounded = (self._weights.as_stored(matrix, entry) for matrix, entry in zip(matrices, entries, strict=True))
        return self._weights.hold_mlp("expert", *rounded)


class _Members(Sequence[ExpertMatrices]):
    """Experts that are read on access, so that a merge need not hold all of its members."""

    def __init__(self, weights: WeightReader, entries: Sequence[tuple[TensorEntry, TensorEntry, TensorEntry]]) -> None:
        self._weights, self._entries = weights, entries

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> ExpertMatrices: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[ExpertMatrices]: ...
    def __getitem__(self, index: int | slice) -> ExpertMatrices | Sequence[ExpertMatrices]:
        if isinstance(index, slice):
            return _Members(self._weights, self._entries[index])
        return ExpertMatrices(*(self._weights.read_new(entry) for entry in self._entries[index]))
