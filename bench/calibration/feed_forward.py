"""The feed-forward sub-layer of one decoder layer over a block of tokens, expert by expert as the checkpoint is read.

Shape letters: T tokens, E routed experts, K experts per token, D hidden size, N some of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calibration.sums import LayerSums
from bench.calibration.weights import MlpWeights, WeightReader, expert_entries
from methods.inventory import LayerInventory, Router, TensorEntry
from methods.kernels.experts import Activation, Assignment, gated_mlp
from methods.kernels.routing import route
from methods.plan import LayerPlan

Entries = Mapping[str, TensorEntry]


class FeedForward:
    """Computes MoE and dense sub-layers; memory holds the weights of one expert."""

    def __init__(self, router: Router, weights: WeightReader, activation: Activation, rows: int) -> None:
        """Keep router semantics, the reader, the experts' activation and the bound on rows of one matrix product."""
        self._router, self._weights, self._activation, self._rows = router, weights, activation, rows

    def __call__(
        self, layer: LayerInventory, input_TD: Tensor, sums: LayerSums | None = None, plan: LayerPlan | None = None
    ) -> Tensor:
        """Return the sub-layer's output, shape (T, D).

        Args:
            layer: what the checkpoint holds for this layer.
            input_TD: the sub-layer's input, after its norm.
            sums: accumulators to which everything seen on the way is added; None measures nothing.
            plan: experts and top-k to run with; None runs the layer as it is.
        """
        output_TD = torch.zeros_like(input_TD)
        entries = {entry.role: entry for entry in layer.tensors if entry.expert is None}
        if layer.mlp == "dense":
            self._add_network(output_TD, input_TD, self._network("dense", entries), None)
        elif layer.mlp == "moe" and (plan is None or plan.drop == "none"):
            self._add_routed(layer, entries, output_TD, input_TD, sums, plan or LayerPlan())
            if "shared.gate" in entries:
                gated = self._router.gated_shared
                gate_1D = self._weights.read("shared.scalar_gate", entries["shared.scalar_gate"]) if gated else None
                self._add_network(output_TD, input_TD, self._network("shared", entries), gate_1D)
        return output_TD

    def _network(self, role: str, entries: Entries) -> MlpWeights:
        return self._weights.read_mlp(role, *(entries[f"{role}.{matrix}"] for matrix in ("gate", "up", "down")))

    def _add_network(self, output_TD: Tensor, input_TD: Tensor, network: MlpWeights, gate_1D: Tensor | None) -> None:
        """Add a network that every token passes, if asked times sigmoid(gate . x)."""
        for out_ND, x_ND in zip(output_TD.split(self._rows), input_TD.split(self._rows), strict=True):
            y_ND = gated_mlp(x_ND, network.gate_up_2FD, network.down_DF, self._activation)
            out_ND += y_ND if gate_1D is None else y_ND * F.linear(x_ND, gate_1D).sigmoid()

    def _add_routed(
        self,
        layer: LayerInventory,
        entries: Entries,
        output_TD: Tensor,
        input_TD: Tensor,
        sums: LayerSums | None,
        plan: LayerPlan,
    ) -> None:
        kept = list(range(layer.experts)) if plan.experts is None else list(plan.experts)
        assignment = self._assign(entries, input_TD, kept, plan.top_k or min(layer.top_k, len(kept)), sums)
        norms_wanted = sums is not None and sums.wants("weight_norm")
        matrices = expert_entries(layer)
        for position, expert in enumerate(kept):
            if not assignment.count(position) and not norms_wanted:
                continue
            network = self._weights.read_mlp("expert", *matrices[expert])
            if sums is not None and norms_wanted:
                sums.weights(expert, network.squared_norms())
            for tokens_N, gates_N in assignment.pieces(position, self._rows):
                x_ND = input_TD.index_select(0, tokens_N)
                y_ND = gated_mlp(x_ND, network.gate_up_2FD, network.down_DF, self._activation)
                if sums is not None:
                    sums.expert(expert, gates_N, y_ND)
                output_TD.index_add_(0, tokens_N, y_ND.mul_(gates_N.to(y_ND.dtype).unsqueeze(1)))

    def _assign(
        self, entries: Entries, input_TD: Tensor, kept: list[int], top_k: int, sums: LayerSums | None
    ) -> Assignment:
        """Route all tokens among the experts ``kept``, whose router rows alone are used."""
        read = self._weights.read_exact
        weight_ED = read("router.weight", entries["router.weight"])[kept]
        bias_E = read("router.bias", entries["router.bias"])[kept] if "router.bias" in entries else None
        correction_E = (
            read("router.correction", entries["router.correction"])[kept] if "router.correction" in entries else None
        )
        parts = []
        for x_ND in input_TD.split(self._rows):
            routing = route(F.linear(x_ND.to(weight_ED.dtype), weight_ED, bias_E), self._router, top_k, correction_E)
            if sums is not None:
                sums.routed(routing)
            parts.append((routing.indices_TK, routing.weights_TK))
        indices_TK, weights_TK = (torch.cat(column) for column in zip(*parts, strict=True))
        return Assignment.of(indices_TK, weights_TK, len(kept))
