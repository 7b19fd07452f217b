"""What the loss tells of channels and matrices when it is differentiated.

For a channel c with input a_c of down, d . w_c is the gradient of the loss in a_c. So w_c^T (sum of d d^T) w_c is a sum of
squares over tokens, and no D x D matrix is formed. Shape letters: T tokens of a window, N those of one expert, E routed experts,
F expert width, D hidden size, M the three matrices; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import ExpertGradient, LayerPlace
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor


class ChannelCurvature(Accumulator):
    """Squared channels and squared slopes in them."""

    specs = (
        StatSpec(
            "channel_curvature",
            ("E", "F"),
            "moe",
            "gradient",
            "mean over T_j of a_c^2, times w_c^T G_j w_c with G_j the mean over T_j of d d^T; d is the gradient, in f_j(x) "
            "before its weighting by g_j, of the next-token cross-entropy summed over the window; 0 where T_j is empty",
            "nat^2",
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._squares_2EF = place.zeros(2, place.layer.experts, place.width)
        self._tokens_E = place.zeros(place.layer.experts)

    def gradient(self, part: ExpertGradient) -> None:
        tokens, width = part.channels_NF.shape
        self._tokens_E[part.expert] += tokens
        self._squares_2EF[0, part.expert, :width] += part.channels_NF.double().square().sum(dim=0)
        self._squares_2EF[1, part.expert, :width] += part.slope_NF.double().square().sum(dim=0)

    def finished(self, seen: Seen) -> dict[str, Array]:
        square_EF, curvature_EF = self._squares_2EF / self._tokens_E.clamp_min(1).unsqueeze(1)
        return {"channel_curvature": (square_EF * curvature_EF).cpu().numpy()}


class FisherMass(Accumulator):
    """Squared gradients in the matrices."""

    specs = (
        StatSpec(
            "fisher_mass",
            ("E", "M"),
            "moe",
            "gradient",
            "sum over windows of the squared Frobenius norm of the gradient, in gate, up, down, of the window's mean "
            "next-token cross-entropy",
            "nat^2 / weight^2 windows",
            of_whole_experts=True,
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_EM = place.zeros(place.layer.experts, 3)

    def gradient(self, part: ExpertGradient) -> None:
        from methods.kernels.norms import squared_norm

        masses = [squared_norm(gradient) / part.targets**2 for gradient in part.in_matrices()]
        self._sum_EM[part.expert] += torch.tensor(masses, dtype=torch.float64, device=self._sum_EM.device)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"fisher_mass": self._sum_EM.cpu().numpy()}


class EntryFisher(Accumulator):
    """Squared gradients, entry by entry: float32 sums in a file."""

    specs = (
        StatSpec(
            "entry_fisher",
            ("E", "F", "M", "D"),
            "moe",
            "gradient",
            "mean over windows of the squared gradient, in every entry of gate, up and the transpose of down, of the window's "
            "mean next-token cross-entropy; float32, a memory map",
            "nat^2 / weight^2",
            on_disk=True,
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._shape = (place.layer.experts, place.width, 3, place.hidden)
        self._sums = place.file("entry_fisher", self._shape)
        self._windows = 0

    def begin(self, window_T: Tensor, windows: int) -> None:
        self._windows += windows

    def gradient(self, part: ExpertGradient) -> None:
        sum_FMD = self._sum(part.expert)
        gate_FD, up_FD, down_DF = part.in_matrices()
        for matrix, slope_FD in enumerate((gate_FD, up_FD, down_DF.T)):
            square_FD = (slope_FD / part.targets).square()
            sum_FMD[: len(square_FD), matrix] += square_FD.float().cpu().numpy()
        self._sums.write(part.expert, sum_FMD)

    def _sum(self, expert: int) -> Any:
        """Return what its file holds of an expert; one is in memory, whatever the number of layers."""
        sum_FMD = np.empty(self._shape[1:], dtype=np.float32)
        self._sums.read(expert, sum_FMD)
        return sum_FMD

    def finished(self, seen: Seen) -> dict[str, Array]:
        for expert in range(self._shape[0]):
            self._sums.append(self._sum(expert)[None] / max(self._windows, 1))
        return {"entry_fisher": self._sums.finished()}
