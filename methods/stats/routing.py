"""What routers decide: scores, logits, and how often experts are chosen, alone and together.

Shape letters: N some tokens, K experts per token, R router rows, E routed experts; see ``methods.framework.stat_spec``.
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


class RouterProbability(Accumulator):
    """Router scores, added up."""

    specs = (
        StatSpec(
            "router_probability",
            ("E",),
            "moe",
            "routed",
            "sum over all tokens of the full router score",
            "tokens",
            of_rows=True,
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_E = place.zeros(place.layer.experts)

    def decided(self, logits_NR: Tensor, scores_NR: Tensor, indices_NK: Tensor) -> None:
        self._sum_E += scores_NR.sum(dim=0, dtype=torch.float64)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"router_probability": self._sum_E.cpu().numpy()}


class LogitGram(Accumulator):
    """Products of router logits."""

    specs = (
        StatSpec(
            "logit_gram", ("E", "E"), "moe", "routed", "sum over all tokens of z_i z_j", "logit^2 tokens", of_rows=True
        ),
    )

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_EE = place.zeros(place.layer.experts, place.layer.experts)

    def decided(self, logits_NR: Tensor, scores_NR: Tensor, indices_NK: Tensor) -> None:
        logits_NE = logits_NR.double()
        self._sum_EE += logits_NE.T @ logits_NE

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"logit_gram": self._sum_EE.cpu().numpy()}


class Coactivation(Accumulator):
    """Pairs of experts that are chosen together."""

    specs = (StatSpec("coactivation", ("E", "E"), "moe", "routed", "tokens routed to both i and j", "tokens"),)

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_EE = place.zeros(place.layer.experts, place.layer.experts)

    def decided(self, logits_NR: Tensor, scores_NR: Tensor, indices_NK: Tensor) -> None:
        experts = self.place.layer.experts
        width = max(experts, int(indices_NK.max()) + 1)  # behind the experts: constants, and places that lead nowhere
        hits_NE = torch.zeros(len(indices_NK), width, dtype=torch.float64, device=indices_NK.device)
        hits_NE = hits_NE.scatter_(1, indices_NK, 1.0)[:, :experts]
        self._sum_EE += hits_NE.T @ hits_NE

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"coactivation": self._sum_EE.cpu().numpy()}


class RoutedTokens(Accumulator):
    """Tokens of each expert, which the pass counts anyway."""

    specs = (StatSpec("routed_tokens", ("E",), "moe", "routed", "tokens routed to j", "tokens"),)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"routed_tokens": np.array(seen.hits_E, dtype=np.float64)}
