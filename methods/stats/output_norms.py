"""Norms of what experts put out, and of their weighted sum.

Shape letters: T tokens of a block, W windows in it, N some of the tokens, K experts per token, E routed experts, X experts and
what stands behind them, D hidden size, A gate powers, B norm powers; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import LayerPlace
from methods.framework.stat_spec import GATE_POWERS, NORM_POWERS, Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 512
"""Tokens of which vectors are widened to float64 at once."""


def _norms(output_ND: Tensor) -> Tensor:
    """Return the norms of outputs in at least float32."""
    wide = torch.promote_types(output_ND.dtype, torch.float32)
    norms_N: Tensor = torch.linalg.vector_norm(output_ND, dim=-1, dtype=wide)
    return norms_N


class GateNormMoment(Accumulator):
    """Powers of gates times powers of norms."""

    specs = (
        StatSpec(
            "gate_norm_moment",
            ("E", "A", "N"),
            "moe",
            "routed",
            "sum over T_j of g_j^a |f_j|_2^b for a, b in 0, 1, 2; (0, 0) is the number of tokens routed to j",
            "output^b tokens",
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_EAB = place.zeros(place.layer.experts, len(GATE_POWERS), len(NORM_POWERS))

    def expert(self, expert: int, tokens_N: Tensor, places_N: Tensor, gates_N: Tensor, output_ND: Tensor) -> None:
        from methods.kernels.experts import gate_norm_moments

        self._sum_EAB[expert] += gate_norm_moments(gates_N, _norms(output_ND))

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"gate_norm_moment": self._sum_EAB.cpu().numpy()}


class ResidualGateNorm(Accumulator):
    """Weighted norms, each token counted by how far the routed output turns the residual stream."""

    specs = (
        StatSpec(
            "residual_gate_norm",
            ("E",),
            "moe",
            "routed",
            "sum over T_j of max(0, 1 - cos(h, h + y)) g_j |f_j|_2, h the residual stream that enters the MoE sub-layer, "
            "before its norm, and y the sub-layer's routed output, shared experts left out",
            "output tokens",
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_E = place.zeros(place.layer.experts)

    def begin(self, window_T: Tensor, windows: int) -> None:
        self._norms_TK = self.place.zeros(len(window_T), self.place.layer.top_k)

    def entered(self, residual_TD: Tensor) -> None:
        self._residual_TD = residual_TD

    def expert(self, expert: int, tokens_N: Tensor, places_N: Tensor, gates_N: Tensor, output_ND: Tensor) -> None:
        self._norms_TK[tokens_N, places_N] = _norms(output_ND).double()

    def routed(self, input_TD: Tensor, output_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> None:
        experts = self.place.layer.experts
        total_X = self.place.zeros(max(experts, int(indices_TK.max()) + 1))
        for start in range(0, len(output_TD), _PIECE):
            rows = slice(start, start + _PIECE)
            before_ND = self._residual_TD[rows].double()
            after_ND = before_ND + output_TD[rows]
            lengths_N = torch.linalg.vector_norm(before_ND, dim=-1) * torch.linalg.vector_norm(after_ND, dim=-1)
            cosine_N = torch.where(lengths_N > 0, torch.linalg.vecdot(before_ND, after_ND) / lengths_N, 0.0)
            terms_NK = weights_TK[rows].double() * self._norms_TK[rows] * (1 - cosine_N).clamp_min(0.0).unsqueeze(1)
            total_X.index_add_(0, indices_TK[rows].flatten(), terms_NK.flatten())
        self._sum_E += total_X[:experts]

    def end(self) -> None:
        del self._residual_TD

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"residual_gate_norm": self._sum_E.cpu().numpy()}


class RoutedNorm(Accumulator):
    """Norms of the routed output, window by window."""

    specs = (
        StatSpec(
            "routed_norm",
            (),
            "moe",
            "routed",
            "sum over windows of the Frobenius norm of the routed output",
            "output tokens^0.5",
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum = place.zeros()

    def begin(self, window_T: Tensor, windows: int) -> None:
        self._window_T, self._windows = window_T, windows

    def routed(self, input_TD: Tensor, output_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> None:
        squares_W = self.place.zeros(self._windows)
        for start in range(0, len(output_TD), _PIECE):
            rows = slice(start, start + _PIECE)
            squares_W.index_add_(0, self._window_T[rows], output_TD[rows].double().square().sum(dim=-1))
        self._sum += squares_W.sqrt().sum()

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"routed_norm": self._sum.cpu().numpy()}
