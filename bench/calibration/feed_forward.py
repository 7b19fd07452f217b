"""The feed-forward sub-layer of one decoder layer over a block of tokens, expert by expert as the checkpoint is read.

Shape letters: T tokens, E routed experts, K experts per token, R router rows, D hidden size, N some of the tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calibration.layers.expert_pass import ExpertPass
from bench.calibration.layers.layer_experts import LayerExperts, Made
from bench.calibration.layers.layer_router import LayerRouter
from bench.calibration.layers.weights import WeightReader
from bench.calibration.measured_experts import MeasuredExperts, add_weighted
from bench.calibration.sums.layer_sums import LayerSums
from methods.framework.accumulator import Shown
from methods.framework.inventory import LayerInventory, Router, TensorEntry
from methods.framework.layer_plan import LayerPlan
from methods.framework.linears import whole_linears
from methods.framework.stat_spec import Array
from methods.kernels.experts import Activation, gated_mlp

Entries = Mapping[str, TensorEntry]


class FeedForward:
    """Computes MoE and dense sub-layers; memory holds the weights of one expert."""

    def __init__(
        self,
        router: Router,
        weights: WeightReader,
        activation: Activation,
        rows: int,
        output_bytes: int = 128 << 20,
    ) -> None:
        """Keep router semantics, the reader, the experts' activation and bounds.

        Args:
            router: semantics of the family.
            weights: reader of the checkpoint.
            activation: of the experts.
            rows: rows of one matrix product.
            output_bytes: bound on outputs of several experts that are held for the same tokens.
        """
        self._router, self._weights, self._activation, self._rows = router, weights, activation, rows
        self._output_bytes = output_bytes

    def __call__(
        self,
        layer: LayerInventory,
        input_TD: Tensor,
        sums: LayerSums | None = None,
        plan: LayerPlan | None = None,
        means_ED: Array | None = None,
        made: Made | None = None,
    ) -> Tensor:
        """Return the sub-layer's output, shape (T, D).

        Args:
            layer: what the checkpoint holds for this layer.
            input_TD: the sub-layer's input, after its norm.
            sums: accumulators to which everything seen on the way is added; None measures nothing.
            plan: what becomes of the layer; None runs it as it is, which is what ``sums`` are taken of.
            means_ED: mean outputs of the layer's experts, for a plan with constants.
            made: makes the experts of a plan that changes them inside.
        """
        output_TD = torch.zeros_like(input_TD)
        entries = {entry.role: entry for entry in whole_linears(layer.tensors) if entry.expert is None}
        if sums is not None and "network" in sums.shown:
            sums.linear("network", 0, input_TD)
        if layer.mlp == "dense":
            self._add_network("dense", output_TD, input_TD, entries, sums)
        elif layer.mlp == "moe" and (plan is None or plan.drop == "none"):
            assert sums is None or plan is None
            router = LayerRouter.read(self._weights, layer, self._router, plan or LayerPlan(), means_ED)
            experts = LayerExperts(self._weights, layer, plan or LayerPlan(), made)
            self._add_routed(router, experts, output_TD, input_TD, sums)
            if "shared.gate" in entries:
                self._add_network("shared", output_TD, input_TD, entries, sums)
        return output_TD

    def _add_network(
        self, name: str, output_TD: Tensor, input_TD: Tensor, entries: Entries, sums: LayerSums | None
    ) -> None:
        """Add the network that every token passes, ``dense`` or ``shared``; the latter, if asked, times sigmoid(gate . x)."""
        network = self._weights.read_mlp(name, *(entries[f"{name}.{matrix}"] for matrix in ("gate", "up", "down")))
        gated = name == "shared" and self._router.gated_shared
        gate_1D = self._weights.read("shared.scalar_gate", entries["shared.scalar_gate"]) if gated else None
        shown = sums if sums is not None and "network" in sums.shown else None
        start = 0
        for out_ND, x_ND in zip(output_TD.split(self._rows), input_TD.split(self._rows), strict=True):
            show = None if shown is None else partial(shown.linear, name, start)
            y_ND = gated_mlp(x_ND, network.gate_up_2FD, network.down_DF, self._activation, show)
            out_ND += y_ND if gate_1D is None else y_ND * F.linear(x_ND, gate_1D).sigmoid()
            start += len(x_ND)

    def _add_routed(
        self, router: LayerRouter, experts: LayerExperts, output_TD: Tensor, input_TD: Tensor, sums: LayerSums | None
    ) -> None:
        logits, indices, weights, scores = [], [], [], []
        shown: frozenset[Shown] = frozenset() if sums is None else sums.shown
        keep_logits = not shown.isdisjoint({"removals", "sampled_logits"})
        for x_ND in input_TD.split(self._rows):
            decision = router(x_ND)
            if sums is not None:
                sums.decided(decision)
            if keep_logits:
                logits.append(decision.logits_NR)
            if router.semantics.weighs_inputs:
                scores.append(decision.routing.scores_TE)
            indices.append(decision.indices_NK)
            weights.append(decision.weights_NK)
        indices_TK, weights_TK = torch.cat(indices), torch.cat(weights)
        run = ExpertPass(
            experts,
            input_TD,
            indices_TK,
            weights_TK,
            router.targets,
            self._activation,
            self._rows,
            "channels" in shown,
            torch.cat(scores) if scores else None,
        )
        if router.constants_CD is not None:
            _add_constants(output_TD, run, router)
        if sums is None:
            add_weighted(output_TD, run.routed(None), None)
            return
        logits_TR = torch.cat(logits) if keep_logits else None
        MeasuredExperts(router, run, logits_TR, output_TD, sums, self._weights, self._output_bytes).run()
        sums.routed(input_TD, output_TD, indices_TK, weights_TK)


def _add_constants(output_TD: Tensor, run: ExpertPass, router: LayerRouter) -> None:
    """Add the vectors that stand for experts, times the weights of the rows that lead to them."""
    assert router.constants_CD is not None
    assignment = run.assignment(None)
    for number, constant_D in enumerate(router.constants_CD):
        for tokens_N, gates_N in assignment.pieces(router.experts + number, 4096):
            output_TD.index_add_(0, tokens_N, torch.outer(gates_N, constant_D).to(output_TD.dtype))
