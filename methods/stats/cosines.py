"""How little sub-layers, decoder layers and runs of layers turn the residual stream.

Shape letters: T tokens, N some tokens, D hidden size, B boundaries between decoder layers; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.framework.accumulator import Accumulator, ModelAccumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import LayerPlace, Place
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 256
"""Tokens whose directions at all boundaries are in memory at once."""


class MoeResidualCosine(Accumulator):
    """Residual stream before and after the MoE sub-layer."""

    specs = (
        StatSpec(
            "moe_residual_cosine",
            (),
            "moe",
            "routed",
            "mean of cos(x, x + MoE(norm(x))), x before the norm",
            "1",
            of_networks=True,
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum = place.zeros()

    def sublayer(self, residual_TD: Tensor, input_TD: Tensor, output_TD: Tensor) -> None:
        from methods.kernels.experts import cosine_sum

        self._sum += cosine_sum(residual_TD, residual_TD + output_TD)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"moe_residual_cosine": self._sum.cpu().numpy() / seen.tokens}


class MoeIoCosine(Accumulator):
    """Input and output of the MoE block."""

    specs = (
        StatSpec(
            "moe_io_cosine",
            (),
            "moe",
            "routed",
            "mean of cos(h, MoE(h)), h the input of the MoE block",
            "1",
            of_networks=True,
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum = place.zeros()

    def sublayer(self, residual_TD: Tensor, input_TD: Tensor, output_TD: Tensor) -> None:
        from methods.kernels.experts import cosine_sum

        self._sum += cosine_sum(input_TD, output_TD)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"moe_io_cosine": self._sum.cpu().numpy() / seen.tokens}


class BlockCosine(Accumulator):
    """Input and output of the decoder layer."""

    specs = (StatSpec("block_cosine", (), "block", "routed", "mean of cos(input, output) of the decoder layer", "1"),)
    shown = frozenset({"layer_input"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum = place.zeros()

    def through(self, input_TD: Tensor, output_TD: Tensor) -> None:
        from methods.kernels.experts import cosine_sum

        self._sum += cosine_sum(input_TD, output_TD)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"block_cosine": self._sum.cpu().numpy() / seen.tokens}


class HiddenCosine(ModelAccumulator):
    """Directions of the hidden states of some tokens at every boundary between layers, kept on disk."""

    specs = (
        StatSpec(
            "hidden_cosine",
            ("B", "B"),
            "model",
            "boundary",
            "mean over sampled tokens of cos(h_a, h_b), h_b the hidden state that enters layer b (b = L: leaves the last)",
            "1",
        ),
    )

    def __init__(self, needs: frozenset[str], place: Place) -> None:
        super().__init__(needs, place)
        self._boundaries, self._count = place.depth + 1, place.boundary.count
        self._rows = place.rows(self._boundaries * self._count, place.hidden, torch.float32, "hidden states")

    def boundary(self, boundary: int, start: int, hidden_TD: Tensor) -> None:
        first, chosen_N = self.place.boundary.within(start, start + len(hidden_TD))
        if len(chosen_N):
            rows_ND = hidden_TD[chosen_N.to(hidden_TD.device)].double()
            unit_ND = rows_ND / torch.linalg.vector_norm(rows_ND, dim=-1, keepdim=True).clamp_min(1e-300)
            self._rows.write(boundary * self._count + first, unit_ND)

    def finished(self) -> dict[str, Array]:
        total_BB = torch.zeros(self._boundaries, self._boundaries, dtype=torch.float64)
        for start in range(0, self._count, _PIECE):
            stop = min(start + _PIECE, self._count)
            offsets = range(0, self._boundaries * self._count, self._count)
            unit_BN = torch.stack([self._rows.read(o + start, o + stop).flatten() for o in offsets]).double()
            total_BB += unit_BN @ unit_BN.T
        return {"hidden_cosine": (total_BB / self._count).numpy()}
