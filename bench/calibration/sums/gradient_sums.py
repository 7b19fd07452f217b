"""Accumulators of one layer for statistics of gradients: float64 sums over tokens, expert by expert.

For a channel c with input a_c of down, d . w_c is the gradient of the loss in a_c. So w_c^T (sum of d d^T) w_c is a sum of
squares over tokens, and no D x D matrix is formed. Shape letters: T tokens of a window, N those of one expert, K experts per
token, E experts, X experts and constants, D hidden size, F expert width, M the three matrices.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calibration.layers.weights import MlpWeights, expert_width, squared_norm
from bench.experts.whole import stored_expert
from methods.framework.stats import Array

if TYPE_CHECKING:
    from torch import nn

    from bench.checkpoint.checkpoint import Checkpoint


class GradientSums:
    """Sums of one layer over the windows of the corpus."""

    def __init__(
        self, needs: Collection[str], checkpoint: Checkpoint, index: int, module: nn.Module, device: torch.device
    ) -> None:
        """Begin with zeros.

        Args:
            needs: statistics.
            checkpoint: the checkpoint.
            index: decoder layer.
            module: experts of that layer in the resident model, which hold their weights and their activation.
            device: of the sums.
        """
        layer = checkpoint.inventory.layers[index]
        self._needs, self._module, self._device = frozenset(needs), module, device
        self._checkpoint, self._index = checkpoint, index
        self._experts, self._targets = layer.experts, layer.experts + layer.constants
        places = range(layer.experts) if layer.expert_map is None else layer.expert_map
        self._places_R = torch.tensor(places, device=device)
        shape = (2, layer.experts, expert_width(layer))
        self._squares = torch.zeros(shape, dtype=torch.float64, device=device)
        self._tokens = torch.zeros(layer.experts, dtype=torch.float64, device=device)
        self._fisher = torch.zeros(layer.experts, 3, dtype=torch.float64, device=device)

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
        for expert in range(self._experts):
            tokens_N = hit_TX[:, expert].nonzero().squeeze(1)
            if not len(tokens_N):
                continue
            slope_ND = slope_TD[tokens_N].to(exact) * gates_TX[tokens_N, expert].unsqueeze(1)
            self._tokens[expert] += len(tokens_N)
            self._add(expert, input_TD[tokens_N].to(exact), slope_ND, max(targets, 1))

    def _add(self, expert: int, x_ND: Tensor, slope_ND: Tensor, targets: int) -> None:
        """Add the tokens of one expert; ``slope_ND`` is the gradient in its outputs."""
        network = self._network(expert, x_ND.dtype)
        with torch.enable_grad():
            both_N2F = F.linear(x_ND, network.gate_up_2FD).requires_grad_()
            gate_NF, up_NF = both_N2F.chunk(2, dim=-1)
            module: Any = self._module
            graph_NF = module.act_fn(gate_NF) * up_NF
        channels_NF = graph_NF.detach()
        slope_NF = slope_ND @ network.down_DF
        if "channel_curvature" in self._needs:
            width = channels_NF.shape[1]
            self._squares[0, expert, :width] += channels_NF.double().square().sum(dim=0)
            self._squares[1, expert, :width] += slope_NF.double().square().sum(dim=0)
        if "fisher_mass" in self._needs:
            (slope_N2F,) = torch.autograd.grad(graph_NF, both_N2F, slope_NF)
            gradients = (*(slope_N2F.T @ x_ND).chunk(2), slope_ND.T @ channels_NF)
            masses = [squared_norm(gradient) / targets**2 for gradient in gradients]
            self._fisher[expert] += torch.tensor(masses, dtype=torch.float64, device=self._fisher.device)

    def _network(self, expert: int, dtype: torch.dtype) -> MlpWeights:
        """Return the matrices of an expert in ``dtype``."""
        module: Any = self._module
        if hasattr(module, "gate_up_proj"):
            return MlpWeights(module.gate_up_proj[expert].to(dtype), module.down_proj[expert].to(dtype))
        # Experts in another form are read as what they stand for: one is in memory at a time.
        gate_FD, up_FD, down_DF = (
            matrix.to(self._device, dtype) for matrix in stored_expert(self._checkpoint, self._index, expert)
        )
        return MlpWeights(torch.cat([gate_FD, up_FD]), down_DF)

    def finished(self) -> dict[str, Array]:
        """Return the statistics of the layer."""
        counts_E1 = self._tokens.clamp_min(1).unsqueeze(1)
        mean_square_EF, curvature_EF = self._squares / counts_E1
        values = {"channel_curvature": mean_square_EF * curvature_EF, "fisher_mass": self._fisher}
        return {name: value.cpu().numpy() for name, value in values.items() if name in self._needs}
