"""The probe: what a method may ask of the running model when statistics do not suffice.

Letters: S sampled tokens, E routed experts, C candidates.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import Array

Decided = Mapping[int, LayerPlan]
"""What becomes of decoder layers, by index; layers that are not named stay as they are."""


@dataclass(frozen=True, slots=True)
class LayerView:
    """One MoE layer on the sampled tokens, its input made by a partly compressed model.

    Args:
        logits_SE: router logits.
        gram_SXX: inner products of the outputs of all experts and, as index E, of the target: the routed output that the
            uncompressed model has at that layer for the same token. Shape (S, E + 1, E + 1).
    """

    logits_SE: Array
    gram_SXX: Array


class Probe(Protocol):
    """The model, asked through five questions. Answers are exact for the probe's tokens, and cached."""

    def layer_view(self, layer: int, decided: Decided) -> LayerView:
        """Return all experts' outputs at MoE layer ``layer`` when the layers before it are as ``decided`` leaves them."""
        ...

    def layer_error(self, layer: int, candidates: Sequence[LayerPlan], decided: Decided) -> Array:
        """Return ||y - y_c||_F of the layer's MoE output for each candidate plan of ``layer``, shape (C,).

        y is the output of the uncompressed model; y_c runs on the states that ``decided`` produces.

        Args:
            layer: index of a decoder layer with experts.
            candidates: C plans of that layer.
            decided: plans of other layers, by index; those that are absent are uncompressed.
        """
        ...

    def noise_error(self, layer: int, candidates: Sequence[LayerPlan]) -> Array:
        """Return ||y - y_c||_F as ``layer_error`` does, on as many tokens, but for inputs that no text made, shape (C,).

        Each input of the layer's experts is a vector of independent standard normal numbers, always the same ones.

        Args:
            layer: index of a decoder layer with experts.
            candidates: C plans of that layer.
        """
        ...

    def block_error(self, layers: Sequence[int], candidates: Sequence[Sequence[LayerPlan]], decided: Decided) -> Array:
        """Return ||Y - Y_p||_F at the output of consecutive decoder layers, for every path of candidates.

        Args:
            layers: consecutive decoder layers.
            candidates: plans of each of ``layers``.
            decided: plans of earlier layers; empty feeds the block with the original states.

        Returns:
            Errors of shape (C_1, ..., C_n); Y is the output of the uncompressed model.
        """
        ...

    def mask_gradient(self, masks: Mapping[int, Array], step: int) -> tuple[float, dict[int, Array]]:
        """Return the loss when expert j's output in layer l is multiplied by ``masks[l][j]``, and its gradient.

        The loss is the cross-entropy of the next token plus the distillation term that the probe was made with, on the
        batch of the calibration corpus that ``step`` selects.
        """
        ...
