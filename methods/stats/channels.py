"""What single channels of experts contribute.

Shape letters: N some tokens of one expert, E routed experts, F expert width; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import LayerPlace
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 512
"""Tokens of which channels are widened to float64 at once."""


class Channels(Accumulator):
    """Sizes of the inputs of down, their gated squares and the largest of these, in float64."""

    specs = (
        StatSpec(
            "channel_magnitude", ("E", "F"), "moe", "routed", "mean over T_j of |a|; 0 where T_j is empty", "channel"
        ),
        StatSpec(
            "channel_energy",
            ("E", "F"),
            "moe",
            "routed",
            "|w_c|^2 times the sum over T_j of (g_j a_c)^2",
            "output^2 tokens",
        ),
        StatSpec(
            "channel_peak", ("E", "F"), "moe", "routed", "|w_c|^2 times the maximum over T_j of (g_j a_c)^2", "output^2"
        ),
    )
    shown = frozenset({"channels"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._gated_EF, self._size_EF, self._peak_EF = place.zeros(3, place.layer.experts, place.width)

    def channels(self, expert: int, x_NF: Tensor, gates_N: Tensor) -> None:
        from methods.kernels.experts import second_moments

        if "channel_energy" in self.needs:
            self._gated_EF[expert] += second_moments(x_NF, gates_N)[1]
        if len(x_NF) and self.needs != {"channel_energy"}:
            size_F, peak_F = self._size_EF[expert], self._peak_EF[expert]
            for some_NF, some_N in zip(x_NF.split(_PIECE), gates_N.split(_PIECE), strict=True):
                size_NF = some_NF.double().abs()
                size_F += size_NF.sum(dim=0)
                gated_F = size_NF.mul_(some_N.double().abs().unsqueeze(1)).amax(dim=0)
                torch.maximum(peak_F, gated_F, out=peak_F)

    def finished(self, seen: Seen) -> dict[str, Array]:
        values: dict[str, Array] = {}
        if "channel_magnitude" in self.needs:
            counts_E1 = np.maximum(np.array(seen.hits_E, dtype=np.float64), 1.0)[:, None]
            values["channel_magnitude"] = self._size_EF.cpu().numpy() / counts_E1
        if self.needs != {"channel_magnitude"}:
            networks = (seen.experts.read(expert) for expert in range(len(seen.experts)))
            norms = [torch.linalg.vector_norm(n.down_DF, dim=0, dtype=torch.float64).square() for n in networks]
            scale_EF = torch.stack(norms).cpu().numpy()
            sums = {"channel_energy": self._gated_EF, "channel_peak": self._peak_EF.square()}
            values |= {name: sums[name].cpu().numpy() * scale_EF for name in sums.keys() & self.needs}
        return values
