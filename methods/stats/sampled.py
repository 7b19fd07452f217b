"""What all experts make of the sampled tokens: products, directions and means of their outputs.

Shape letters: S sampled tokens, N some of them, R router rows, E routed experts, D hidden size; see
``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import LayerPlace
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor

_GRAM_BYTES = 16 << 20
"""Bound on Gram matrices that are in memory at once."""


class TokenLogits(Accumulator):
    """Router logits, token by token."""

    specs = (
        StatSpec(
            "token_logits",
            ("S", "E"),
            "moe",
            "sampled",
            "router logits of the sampled tokens, float32",
            "logit",
            of_rows=True,
            on_disk=True,
        ),
    )
    shown = frozenset({"sampled_logits"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._file = place.file("token_logits", (place.sampled.count, place.layer.rows))

    def sampled_logits(self, logits_NR: Tensor) -> None:
        self._file.append(logits_NR.float().cpu().numpy())

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"token_logits": self._file.finished()}


class TokenGrams(Accumulator):
    """Products of outputs, token by token and as mean cosines."""

    specs = (
        StatSpec(
            "token_gram",
            ("S", "E", "E"),
            "moe",
            "sampled",
            "inner products f_i(x).f_j(x) at each sampled token, float32, a memory map",
            "output^2",
            on_disk=True,
        ),
        StatSpec("output_cosine", ("E", "E"), "moe", "sampled", "mean over sampled tokens of cos(f_i, f_j)", "1"),
    )
    shown = frozenset({"sampled_outputs"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        experts = place.layer.experts
        if "token_gram" in needs:
            self._file = place.file("token_gram", (place.sampled.count, experts, experts))
        self._cosine_EE = place.zeros(experts, experts)

    def sampled_outputs(self, outputs_NED: Tensor) -> None:
        experts = outputs_NED.shape[1]
        for some_NED in outputs_NED.split(max(1, _GRAM_BYTES // (4 * experts * experts))):
            gram_NEE = torch.bmm(some_NED, some_NED.mT)
            if "output_cosine" in self.needs:
                norms_NE = gram_NEE.diagonal(dim1=1, dim2=2).clamp_min(0.0).sqrt()
                norms_NEE = norms_NE.unsqueeze(2) * norms_NE.unsqueeze(1)
                cosine_NEE = torch.where(norms_NEE > 0, gram_NEE / norms_NEE, 0.0)
                self._cosine_EE += cosine_NEE.sum(dim=0, dtype=torch.float64)
            if "token_gram" in self.needs:
                self._file.append(gram_NEE.float().cpu().numpy())

    def finished(self, seen: Seen) -> dict[str, Array]:
        values: dict[str, Any] = {"token_gram": self._file.finished()} if "token_gram" in self.needs else {}
        if "output_cosine" in self.needs:
            mean_EE = (self._cosine_EE / max(self.place.sampled.count, 1)).cpu().numpy()
            values["output_cosine"] = np.clip(mean_EE, -1.0, 1.0)
        return values


class DenseOutputMean(Accumulator):
    """Outputs, added up over the tokens."""

    specs = (
        StatSpec("dense_output_mean", ("E", "D"), "moe", "sampled", "mean of f_j over all sampled tokens", "output"),
    )
    shown = frozenset({"sampled_outputs"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_ED = place.zeros(place.layer.experts, place.hidden)

    def sampled_outputs(self, outputs_NED: Tensor) -> None:
        self._sum_ED += outputs_NED.sum(dim=0, dtype=torch.float64)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"dense_output_mean": (self._sum_ED / max(self.place.sampled.count, 1)).cpu().numpy()}
