"""What the loss tells of channels and matrices when it is differentiated.

For a channel c with input a_c of down, d . w_c is the gradient of the loss in a_c. So w_c^T (sum of d d^T) w_c is a sum of
squares over tokens, and no D x D matrix is formed. Shape letters: N tokens of one expert, E routed experts, F expert width, M the
three matrices; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import ExpertGradient, LayerPlace
from methods.framework.stat_spec import Array, StatSpec


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
