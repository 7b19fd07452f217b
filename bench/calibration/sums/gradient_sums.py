"""All accumulators of gradients of one layer, which are shown one expert after the other.

Shape letters: T tokens of a window, N those of one expert, K experts per token, X experts and constants, D hidden size, F expert
width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.weights import MlpWeights, WeightReader
from bench.calibration.sums.layer_sums import accumulators, measured
from bench.calibration.sums.places import OneLayer
from bench.experts.whole import stored_expert
from methods.framework.accumulator import Seen
from methods.framework.layer_plan import LayerPlan
from methods.framework.stat_spec import Array
from methods.kernels.experts import gated

if TYPE_CHECKING:
    from torch import nn

    from bench.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class ExpertSlopes:
    """What one window shows of one expert when its summed loss is differentiated.

    Args:
        expert: number of the expert.
        targets: tokens that the loss is a sum over, at least 1.
        x_ND: its inputs.
        slope_ND: gradient in its outputs.
        network: its matrices.
        activation: its activation.
    """

    expert: int
    targets: int
    x_ND: Tensor
    slope_ND: Tensor
    network: MlpWeights
    activation: Any

    @cached_property
    def _graph(self) -> tuple[Tensor, Tensor]:
        """Products with gate and up, and the inputs of down as a function of them."""
        with torch.enable_grad():
            bias_2F = None if self.network.biases is None else self.network.biases[0]
            both_N2F = F.linear(self.x_ND, self.network.gate_up_2FD, bias_2F).requires_grad_()
            return both_N2F, gated(self.activation, *both_N2F.chunk(2, dim=-1))

    @cached_property
    def channels_NF(self) -> Tensor:
        """Inputs of down."""
        return self._graph[1].detach()

    @cached_property
    def slope_NF(self) -> Tensor:
        """Gradient in the inputs of down."""
        return self.slope_ND @ self.network.down_DF

    def in_matrices(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradients in gate, up and down."""
        both_N2F, graph_NF = self._graph
        (slope_N2F,) = torch.autograd.grad(graph_NF, both_N2F, self.slope_NF, retain_graph=True)
        gate_FD, up_FD = (slope_N2F.T @ self.x_ND).chunk(2)
        return gate_FD, up_FD, self.slope_ND.T @ self.channels_NF


class GradientSums:
    """Sums of one layer over the windows of the corpus."""

    def __init__(
        self, needs: Collection[str], checkpoint: Checkpoint, place: OneLayer, module: nn.Module, dtype: torch.dtype
    ) -> None:
        """Begin with zeros.

        Args:
            needs: statistics.
            checkpoint: the checkpoint.
            place: the layer.
            module: experts of that layer in the resident model, which hold their weights and their activation.
            dtype: type of the resident model.
        """
        layer, device = place.layer, place.device
        self._accumulators = accumulators(needs, place, {"gradient"})
        self._checkpoint, self._place, self._module = checkpoint, place, module
        self._experts = LayerExperts(WeightReader(checkpoint, device, dtype), layer, LayerPlan())
        self._act = checkpoint.family.gating(checkpoint.config)
        self._tokens, self._hits_E = 0, [0] * layer.experts
        self._targets = layer.experts + layer.constants
        places = range(layer.experts) if layer.expert_map is None else layer.expert_map
        self._places_R = torch.tensor(places, device=device)

    def add(self, input_TD: Tensor, rows_TK: Tensor, weights_TK: Tensor, slope_TD: Tensor, targets: int) -> None:
        """Add one window.

        Args:
            input_TD: what enters the experts.
            rows_TK: router rows that tokens choose.
            weights_TK: their weights.
            slope_TD: gradient of the summed loss in the sum of the weighted outputs.
            targets: tokens that the loss is a sum over.
        """
        exact = torch.promote_types(slope_TD.dtype, torch.float32)
        places_TK = self._places_R[rows_TK]
        # Rows of one token that lead to the same expert act as one, with the sum of their weights.
        gates_TX = torch.zeros(len(rows_TK), self._targets, dtype=exact, device=slope_TD.device)
        gates_TX.scatter_add_(1, places_TK, weights_TK.to(exact))
        hit_TX = torch.zeros_like(gates_TX, dtype=torch.bool).scatter_(1, places_TK, True)
        self._tokens += len(input_TD)
        window_T = torch.zeros(len(input_TD), dtype=torch.int64, device=self._place.device)
        for one in self._accumulators:
            one.begin(window_T, 1)
        for expert in range(len(self._hits_E)):
            tokens_N = hit_TX[:, expert].nonzero().squeeze(1)
            if not len(tokens_N):
                continue
            self._hits_E[expert] += len(tokens_N)
            slope_ND = slope_TD[tokens_N].to(exact) * gates_TX[tokens_N, expert].unsqueeze(1)
            x_ND, module = input_TD[tokens_N].to(exact), self._module
            act = self._act or module.act_fn
            part = ExpertSlopes(expert, max(targets, 1), x_ND, slope_ND, self._network(expert, exact), act)
            for one in self._accumulators:
                one.gradient(part)
        for one in self._accumulators:
            one.end()

    def _network(self, expert: int, dtype: torch.dtype) -> MlpWeights:
        """Return the matrices of an expert in ``dtype``."""
        module: Any = self._module
        if self._place.layer.biased or self._checkpoint.family.file.tensors.fused[0].transposed:
            reader = WeightReader(self._checkpoint, self._place.device, dtype)
            return reader.read_expert("expert", self._place.layer, expert)
        if hasattr(module, "gate_up_proj"):
            return MlpWeights(module.gate_up_proj[expert].to(dtype), module.down_proj[expert].to(dtype))
        # Experts in another form are read as what they stand for: one is in memory at a time.
        gate_FD, up_FD, down_DF = (
            matrix.to(self._place.device, dtype)
            for matrix in stored_expert(self._checkpoint, self._place.index, expert)
        )
        return MlpWeights(torch.cat([gate_FD, up_FD]), down_DF)

    def finished(self) -> dict[str, Array]:
        """Return the statistics of the layer.

        Raises:
            StatsError: a value is not finite.
        """
        return measured(self._accumulators, self._place.index, Seen(self._tokens, self._hits_E, self._experts))
