"""The routed experts of one decoder layer as a plan leaves them, one in memory at a time.

Shape letters: D hidden size, F expert width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from bench.calibration.layers.weights import MlpWeights, WeightReader, expert_entries
from bench.experts.lazy import lazily
from methods.framework.errors import RefusedError
from methods.framework.inventory import EXPERT_BIAS_ROLES, LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.kernels.merging import ExpertMatrices, merged, merged_bias

Made = Callable[[int], ExpertMatrices]
"""Returns an expert that stays, by its number in the source, as the values that are stored of it."""

_COMPUTED = {"rank": "factored", "sparsity": "sparse", "bits": "quantised"}
"""Stages of a plan that compute weights from moments, and how experts are called after them."""


class LayerExperts:
    """Experts that stay, by their new number; a merged one is computed when it is read, and channels are cut then."""

    def __init__(self, weights: WeightReader, layer: LayerInventory, plan: LayerPlan, made: Made | None = None) -> None:
        """Read nothing yet.

        Args:
            weights: reader of the checkpoint.
            layer: what the checkpoint holds for the layer.
            plan: what becomes of the layer: which experts stay, merges, and channels that are cut.
            made: makes its experts; None reads them.

        Raises:
            RefusedError: the plan changes the experts' weights, which a running layer cannot do without their moments.
        """
        self._made = made
        if made is None and (changed := sorted(plan.stages & _COMPUTED.keys())):
            what = " and ".join(_COMPUTED[stage] for stage in changed)
            raise RefusedError(
                f"{what} experts cannot be run while they are measured; write the checkpoint and open it"
            )
        self._channels = plan.channels
        self._weights, self._layer = weights, layer
        self._kept = range(layer.experts) if plan.experts is None else plan.experts
        self._merges = {merge.into: merge for merge in plan.merges}

    def __len__(self) -> int:
        """Return the number of experts."""
        return len(self._kept)

    def read(self, number: int) -> MlpWeights:
        """Return an expert; the one that was read before is gone."""
        if self._made is not None:
            return self._weights.hold_mlp("expert", *self._made(self._kept[number]))
        network = self._whole(number)
        if self._channels is None:
            return network
        kept_F = torch.tensor(self._channels[number], device=network.down_DF.device)
        gate_FD, up_FD = network.gate_up_2FD.chunk(2)
        return MlpWeights(torch.cat([gate_FD[kept_F], up_FD[kept_F]]), network.down_DF[:, kept_F].contiguous())

    def router(self, role: str) -> Tensor | None:
        """Return the router's tensor of ``role`` as it is stored, in at least float32; None where the family has none."""
        entry = next(self._layer.with_role(role), None)
        return None if entry is None else self._weights.read_new(entry)

    def _whole(self, number: int) -> MlpWeights:
        """Return an expert with all of its channels."""
        expert = self._kept[number]
        merge = self._merges.get(expert)
        if merge is None:
            return self._weights.read_expert("expert", self._layer, expert)
        entries = expert_entries(self._layer)

        def member(index: int) -> ExpertMatrices:
            return ExpertMatrices(*(self._weights.read_new(entry) for entry in entries[index]))

        matrices = merged(merge, lazily(member, merge.members))
        gate_FD, up_FD, down_DF = (
            self._weights.as_stored(matrix, entry) for matrix, entry in zip(matrices, entries[expert], strict=True)
        )
        network = self._weights.hold_mlp("expert", gate_FD, up_FD, down_DF)
        if not self._layer.biased:
            return network
        found = []
        for role in EXPERT_BIAS_ROLES:
            own = {entry.expert: entry for entry in self._layer.with_role(role)}
            biases = [self._weights.read_new(own[index]) for index in merge.members]
            bias = merged_bias(merge, lazily(member, merge.members), biases, role != EXPERT_BIAS_ROLES[2])
            found.append(self._weights.as_stored(bias, own[expert]).to(network.down_DF.dtype))
        return replace(network, biases=(torch.cat(found[:2]), found[2]))
