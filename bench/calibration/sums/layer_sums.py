"""Accumulators of one decoder layer: float64 sums over tokens that become the catalogue's statistics.

Shape letters: T tokens of a block, W windows in it, E routed experts, K experts per token, D hidden size, M the three
matrices, A gate powers, B norm powers, N some of the tokens.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from bench.calibration.layers.hidden import Block
from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.layer_router import Decision
from bench.calibration.sums.moment_sums import NAMES as MOMENTS
from bench.calibration.sums.moment_sums import MomentSums
from bench.calibration.sums.sampled_sums import SampledSums, Sampling
from methods.framework.errors import StatsError
from methods.framework.inventory import LayerInventory
from methods.framework.stats import CATALOGUE, GATE_POWERS, NORM_POWERS, Array
from methods.kernels.experts import cosine_sum, gate_norm_moments

_PIECE = 512
"""Tokens of which vectors are widened to float64 at once."""
_WITHIN = ("routed_output_mean", "routed_output_variance")


class LayerSums:
    """Sums of one layer for the statistics asked for; blocks are added between ``begin`` and ``end``."""

    def __init__(
        self,
        needs: Collection[str],
        layer: LayerInventory,
        hidden: int,
        device: torch.device,
        index: int = 0,
        sampling: Sampling | None = None,
    ) -> None:
        """Begin with zeros; ``index`` names the layer, ``sampling`` is required for what has files."""
        defined = {name for name in needs if CATALOGUE[name].scope == "block" or layer.mlp == "moe"}
        sampled = {name for name in defined if CATALOGUE[name].cost == "sampled"}
        self._needs = {name for name in defined - sampled if CATALOGUE[name].cost == "routed"}
        self._layer, self._index, self._device = layer, index, device
        self.tokens = 0
        shapes = {"E": layer.experts, "D": hidden, "A": len(GATE_POWERS), "N": len(NORM_POWERS)}
        self._sums = {
            name: torch.zeros([shapes[letter] for letter in CATALOGUE[name].dims], dtype=torch.float64, device=device)
            for name in self._needs - MOMENTS
        }
        self.moments: MomentSums | None = None
        if self.wants(*MOMENTS):
            files = (None, None) if sampling is None else (sampling.arrays, sampling.scratch)
            self.moments = MomentSums(self._needs, layer, hidden, device, index, *files)
        self._hits_E = [0] * layer.experts
        within = self.wants(*_WITHIN)
        self._within = torch.zeros(2, layer.experts, hidden, dtype=torch.float64, device=device) if within else None
        self.sampled: SampledSums | None = None
        if sampled:
            assert sampling is not None
            self.sampled = SampledSums(sampled, layer, hidden, device, index, sampling)

    def wants(self, *names: str) -> bool:
        """Return whether one of ``names`` is asked for and defined in this layer."""
        return not self._needs.isdisjoint(names)

    def begin(self, block: Block) -> None:
        """Take the tokens of ``block``, which holds whole windows, from now on."""
        lengths = [batch.length for batch in block.batches for _ in range(batch.count)]
        windows, tokens = len(lengths), block.stop - block.start
        self.tokens += tokens
        self._window_T = torch.arange(windows).repeat_interleave(torch.tensor(lengths)).to(self._device)
        removal = self.wants("removal_loss")
        self._removed_WE = torch.zeros(
            windows if removal else 0, self._layer.experts, dtype=torch.float64, device=self._device
        )
        norms = self.wants("residual_gate_norm")
        self._norms_TK = torch.zeros(
            tokens if norms else 0, self._layer.top_k, dtype=torch.float64, device=self._device
        )
        self._windows = windows
        if self.sampled is not None:
            self.sampled.begin(block)

    def end(self) -> None:
        """Close the block: take roots of the sums over each window."""
        if self.wants("removal_loss"):
            self._sums["removal_loss"] += self._removed_WE.sqrt().sum(dim=0)

    def decided(self, decision: Decision) -> None:
        """Add what the router says of some tokens."""
        if self.wants("router_probability"):
            self._sums["router_probability"] += decision.routing.scores_TE.sum(dim=0, dtype=torch.float64)
        if self.wants("logit_gram"):
            logits_NE = decision.logits_NR.double()
            self._sums["logit_gram"] += logits_NE.T @ logits_NE
        if self.wants("coactivation"):
            indices_NK, experts = decision.indices_NK, self._layer.experts
            width = max(experts, int(indices_NK.max()) + 1)
            hits_NE = torch.zeros(len(indices_NK), width, dtype=torch.float64, device=indices_NK.device)
            hits_NE = hits_NE.scatter_(1, indices_NK, 1.0)[:, :experts]
            self._sums["coactivation"] += hits_NE.T @ hits_NE

    def expert(
        self,
        expert: int,
        tokens_N: Tensor,
        places_N: Tensor,
        gates_N: Tensor,
        output_ND: Tensor,
        channels_NF: Tensor | None = None,
    ) -> None:
        """Add the outputs, not yet weighted, of ``expert`` on some of its tokens.

        Args:
            expert: index of the expert.
            tokens_N: the tokens, as rows of the block.
            places_N: the expert's column in the routing decision of each.
            gates_N: weights of the outputs.
            output_ND: the outputs.
            channels_NF: the inputs of down that they come from, where those are measured.
        """
        self._hits_E[expert] += len(tokens_N)
        if self.moments is not None and channels_NF is not None:
            self.moments.channels(expert, channels_NF, gates_N)
        if self.wants("gate_norm_moment", "residual_gate_norm"):
            wide = torch.promote_types(output_ND.dtype, torch.float32)
            norms_N = torch.linalg.vector_norm(output_ND, dim=-1, dtype=wide)
            if self.wants("gate_norm_moment"):
                self._sums["gate_norm_moment"][expert] += gate_norm_moments(gates_N, norms_N)
            if self.wants("residual_gate_norm"):
                self._norms_TK[tokens_N, places_N] = norms_N.double()
        if self._within is not None:
            for piece_ND in output_ND.split(_PIECE):
                wide_ND = piece_ND.double()
                self._within[0, expert] += wide_ND.sum(dim=0)
                self._within[1, expert] += wide_ND.square().sum(dim=0)

    def removed(self, tokens_N: Tensor, squares_NE: Tensor) -> None:
        """Add the squared changes of some tokens' routed output when each expert alone is removed."""
        self._removed_WE.index_add_(0, self._window_T[tokens_N], squares_NE)

    def routed(self, input_TD: Tensor, output_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> None:
        """Add what depends on the whole output of the routed experts; ``input_TD`` is the input of the MoE block."""
        if self.wants("input_magnitude"):
            for piece_ND in input_TD.split(_PIECE):
                self._sums["input_magnitude"] += piece_ND.double().abs().sum(dim=0)
        if self.wants("routed_norm"):
            squares_W = torch.zeros(self._windows, dtype=torch.float64, device=self._device)
            for start in range(0, len(output_TD), _PIECE):
                rows = slice(start, start + _PIECE)
                squares_W.index_add_(0, self._window_T[rows], output_TD[rows].double().square().sum(dim=-1))
            self._sums["routed_norm"] += squares_W.sqrt().sum()
        if self.wants("residual_gate_norm"):
            self._sums["residual_gate_norm"] += self._residual_gate_norm(input_TD, output_TD, indices_TK, weights_TK)

    def _residual_gate_norm(
        self, input_TD: Tensor, output_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor
    ) -> Tensor:
        width = max(self._layer.experts, int(indices_TK.max()) + 1)
        total_X = torch.zeros(width, dtype=torch.float64, device=self._device)
        for start in range(0, len(output_TD), _PIECE):
            rows = slice(start, start + _PIECE)
            input_ND = input_TD[rows].double()
            after_ND = input_ND + output_TD[rows]
            lengths_N = torch.linalg.vector_norm(input_ND, dim=-1) * torch.linalg.vector_norm(after_ND, dim=-1)
            cosine_N = torch.where(lengths_N > 0, torch.linalg.vecdot(input_ND, after_ND) / lengths_N, 0.0)
            terms_NK = weights_TK[rows].double() * self._norms_TK[rows] * (1 - cosine_N).clamp_min(0.0).unsqueeze(1)
            total_X.index_add_(0, indices_TK[rows].flatten(), terms_NK.flatten())
        return total_X[: self._layer.experts]

    def sublayer(self, residual_TD: Tensor, input_TD: Tensor, output_TD: Tensor) -> None:
        """Add the cosines of the MoE sub-layer; ``residual_TD`` is the residual stream before its output is added."""
        if self.wants("moe_residual_cosine"):
            self._sums["moe_residual_cosine"] += cosine_sum(residual_TD, residual_TD + output_TD)
        if self.wants("moe_io_cosine"):
            self._sums["moe_io_cosine"] += cosine_sum(input_TD, output_TD)

    def layer(self, input_TD: Tensor, output_TD: Tensor) -> None:
        """Add the cosine over the decoder layer."""
        if self.wants("block_cosine"):
            self._sums["block_cosine"] += cosine_sum(input_TD, output_TD)

    def finished(self, experts: LayerExperts | None = None) -> dict[str, Array]:
        """Return the statistics of the layer; ``experts`` are required for what combines moments with weights.

        Raises:
            StatsError: tokens were lost or counted twice, or a value is not finite.
        """
        values: dict[str, Array] = {name: total.cpu().numpy() for name, total in self._sums.items()}
        for name in values:
            if name.endswith("_cosine") or name == "input_magnitude":
                values[name] = values[name] / self.tokens
        if self.wants("routed_tokens"):
            values["routed_tokens"] = np.array(self._hits_E, dtype=np.float64)
        if self._within is not None:
            counts_E1 = torch.tensor(self._hits_E, dtype=torch.float64, device=self._device).clamp_min_(1).unsqueeze(1)
            mean_ED = self._within[0] / counts_E1
            variance_ED = (self._within[1] / counts_E1 - mean_ED.square()).clamp_min(0.0)
            within = zip(_WITHIN, (mean_ED.cpu().numpy(), variance_ED.cpu().numpy()), strict=True)
            values.update((name, value) for name, value in within if name in self._needs)
        counted, due = sum(self._hits_E), self.tokens * self._layer.top_k
        if self._layer.mlp == "moe" and self._layer.expert_map is None and counted != due:
            raise StatsError(f"layer {self._index}: experts saw {counted} (token, expert) pairs instead of {due}")
        if self.moments is not None:
            values.update(self.moments.finished(self._hits_E, experts))
        if self.sampled is not None:
            values.update(self.sampled.finished())
        # Memory maps were checked on their way to the file.
        check_finite(self._index, {name: value for name, value in values.items() if not isinstance(value, np.memmap)})
        return values


def check_finite(index: int, values: dict[str, Array]) -> None:
    """Refuse values of layer ``index`` that are not finite.

    Raises:
        StatsError: with the layer and the statistic.
    """
    for name, value in values.items():
        if not torch.from_numpy(value.reshape(-1)).isfinite().all():
            raise StatsError(
                f"layer {index}: {name} is not finite; the weights hold inf or nan, or dtype overflows: use float32"
            )
