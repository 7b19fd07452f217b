"""Mean and variance of what each expert puts out on its own tokens.

Shape letters: N some tokens, E routed experts, D hidden size; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import LayerPlace
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 512
"""Tokens of which outputs are widened to float64 at once."""


class RoutedOutputs(Accumulator):
    """Sums of outputs and of their squares."""

    specs = (
        StatSpec(
            "routed_output_mean", ("E", "D"), "moe", "routed", "mean of f_j over T_j; 0 where T_j is empty", "output"
        ),
        StatSpec(
            "routed_output_variance",
            ("E", "D"),
            "moe",
            "routed",
            "variance of f_j over T_j; 0 if T_j is empty",
            "output^2",
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sums_2ED = place.zeros(2, place.layer.experts, place.hidden)

    def expert(self, expert: int, tokens_N: Tensor, places_N: Tensor, gates_N: Tensor, output_ND: Tensor) -> None:
        for piece_ND in output_ND.split(_PIECE):
            wide_ND = piece_ND.double()
            self._sums_2ED[0, expert] += wide_ND.sum(dim=0)
            self._sums_2ED[1, expert] += wide_ND.square().sum(dim=0)

    def finished(self, seen: Seen) -> dict[str, Array]:
        counts_E1 = torch.tensor(seen.hits_E, dtype=torch.float64, device=self.place.device).clamp_min_(1).unsqueeze(1)
        mean_ED = self._sums_2ED[0] / counts_E1
        variance_ED = (self._sums_2ED[1] / counts_E1 - mean_ED.square()).clamp_min(0.0)
        values = {"routed_output_mean": mean_ED, "routed_output_variance": variance_ED}
        return {name: value.cpu().numpy() for name, value in values.items() if name in self.needs}
