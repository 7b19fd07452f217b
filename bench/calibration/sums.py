"""Accumulators of one decoder layer: float64 sums over tokens that become the catalogue's statistics.

Shape letters: T tokens, E routed experts, D hidden size, M the three matrices, A gate powers, N norm powers.
"""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from methods.errors import StatsError
from methods.inventory import LayerInventory
from methods.kernels.experts import cosine_sum, gate_norm_moments
from methods.kernels.routing import Routing
from methods.stats import CATALOGUE, GATE_POWERS, NORM_POWERS, Array

_MOE_SUMS = {"router_probability", "gate_norm_moment", "moe_residual_cosine", "moe_io_cosine"}


class LayerSums:
    """Sums of one layer for the statistics asked for."""

    def __init__(self, needs: Collection[str], layer: LayerInventory, device: torch.device) -> None:
        """Begin with zeros."""
        self._needs = frozenset(needs) - (frozenset() if layer.mlp == "moe" else _MOE_SUMS | {"weight_norm"})
        self._layer = layer
        self.tokens = 0
        shapes = {"E": layer.experts, "M": 3, "A": len(GATE_POWERS), "N": len(NORM_POWERS)}
        self._sums = {
            name: torch.zeros([shapes[letter] for letter in CATALOGUE[name].dims], dtype=torch.float64, device=device)
            for name in self._needs
            if CATALOGUE[name].scope != "model"
        }

    def wants(self, *names: str) -> bool:
        """Return whether one of ``names`` is asked for and defined in this layer."""
        return not self._needs.isdisjoint(names)

    def routed(self, routing: Routing) -> None:
        """Add the router's scores of some tokens."""
        if self.wants("router_probability"):
            self._sums["router_probability"] += routing.scores_TE.sum(dim=0, dtype=torch.float64)

    def expert(self, expert: int, gates_N: Tensor, output_ND: Tensor) -> None:
        """Add the outputs, not yet weighted, of ``expert`` on some of its tokens."""
        if self.wants("gate_norm_moment"):
            norms_N = torch.linalg.vector_norm(
                output_ND, dim=-1, dtype=torch.promote_types(output_ND.dtype, torch.float32)
            )
            self._sums["gate_norm_moment"][expert] += gate_norm_moments(gates_N, norms_N)

    def weights(self, expert: int, squared: list[float]) -> None:
        """Set the squared norms of the three matrices of ``expert``."""
        self._sums["weight_norm"][expert] = torch.tensor(squared, dtype=torch.float64)

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

    def finished(self, index: int) -> dict[str, Array]:
        """Return the statistics of the layer, whose index is for messages.

        Raises:
            StatsError: tokens were lost or counted twice, or a value is not finite.
        """
        values = {name: total.cpu().numpy() for name, total in self._sums.items()}
        for name in values:
            if name.endswith("_cosine"):
                values[name] = values[name] / self.tokens
        if "gate_norm_moment" in values:
            counted, due = values["gate_norm_moment"][:, 0, 0].sum(), self.tokens * self._layer.top_k
            if counted != due:
                raise StatsError(f"layer {index}: experts saw {counted:.0f} (token, expert) pairs instead of {due}")
        for name, value in values.items():
            if not torch.from_numpy(value.reshape(-1)).isfinite().all():
                raise StatsError(
                    f"layer {index}: {name} is not finite; the weights hold inf or nan, or dtype overflows: use float32"
                )
        return values
