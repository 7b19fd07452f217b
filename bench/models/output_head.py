"""Logits of a model from states behind its final norm, as the model itself makes them of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from bench.families.family import family_of

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class OutputHead:
    """The module of the output head, and what becomes of its products.

    Args:
        module: of the model.
        divisor: of the products.
        cap: bound that a hyperbolic tangent sets to the quotients; None: there is none.
    """

    module: nn.Module
    divisor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> OutputHead:
        """Return that of ``model``, by the file of its family."""
        config = model.config.to_dict()
        module: nn.Module = model.get_output_embeddings()
        return cls(module, *family_of(config).head(config))

    @property
    def vocab(self) -> int:
        """Number of logits of a state."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.shape[0]

    def __call__(self, states: Tensor) -> Tensor:
        """Return the logits, one for each token of the vocabulary in the last axis."""
        logits: Tensor = self.module(states)
        if self.divisor != 1.0:
            logits = logits / self.divisor
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap
