"""The whole model with a factor on each expert's output, and the gradient of its loss in these factors.

Shape letters: B sequences, S their length, T tokens, E routed experts, K experts per token, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calibration.resident import frozen_model
from bench.models.decoder import decoder_of
from bench.models.output_head import OutputHead
from methods.framework.stats import Array

if TYPE_CHECKING:
    from torch import nn

    from bench.checkpoint.checkpoint import Checkpoint

Group = Sequence[Sequence[int]]
"""Windows of one length."""


class MaskedModel:
    """A resident transformers model whose weights are frozen; gradients reach the masks alone."""

    def __init__(
        self, checkpoint: Checkpoint, batches: Sequence[Sequence[Group]], device: torch.device, dtype: torch.dtype
    ) -> None:
        """Load the model.

        Args:
            checkpoint: an open checkpoint.
            batches: groups of windows of equal length.
            device: where the model is.
            dtype: type of its weights and activations.

        Raises:
            CheckpointError: as ``bench.calibration.resident.frozen_model``.
        """
        self._model, self._experts = frozen_model(checkpoint, device, dtype)
        self._head = OutputHead.of(self._model)
        self._batches, self._device = batches, device
        self._original: dict[int, list[Tensor]] = {}

    def gradient(self, masks: Mapping[int, Array], step: int, distill: float) -> tuple[float, dict[int, Array]]:
        """Return the loss of one batch and its gradient in each mask, by layer, shape (E,) each.

        The loss is the cross-entropy of the next token, a mean over tokens, plus ``distill`` ||F' - F||_F, where F is the
        hidden state of all tokens of the batch that enters the output head.

        Args:
            masks: by index of a layer with experts, a factor on the output of each of them, shape (E,).
            step: number of the batch, counted around.
            distill: factor on the distance of hidden states; 0 leaves it out.
        """
        number = step % len(self._batches)
        batch = [torch.tensor(group, device=self._device) for group in self._batches[number]]
        if distill and number not in self._original:
            with torch.no_grad():
                self._original[number] = [self._states(ids_BS) for ids_BS in batch]
        # Masks move by less than half precision resolves.
        exact = torch.promote_types(self._model.dtype, torch.float32)
        leaves = {
            layer: torch.tensor(mask_E, device=self._device, dtype=exact, requires_grad=True)
            for layer, mask_E in masks.items()
        }
        with self._masked(leaves), torch.enable_grad():
            entropy, distance, targets = torch.zeros((), device=self._device), torch.zeros((), device=self._device), 0
            for index, ids_BS in enumerate(batch):
                states_BSD = self._states(ids_BS)
                logits_TV = self._head(states_BSD[:, :-1]).flatten(0, 1)
                entropy = entropy + F.cross_entropy(logits_TV.to(exact), ids_BS[:, 1:].flatten(), reduction="sum")
                targets += logits_TV.shape[0]
                if distill:
                    change_BSD = states_BSD - self._original[number][index]
                    distance = distance + change_BSD.to(exact).square().sum()
            # The root has no slope at 0, where nothing differs; the term is 0 there and pulls nowhere.
            penalty = distill * distance.sqrt() if float(distance.detach()) > 0.0 else 0.0
            loss = entropy / targets + penalty
            slopes = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradient = {
            layer: np.zeros(len(leaf)) if slope is None else slope.double().cpu().numpy()
            for (layer, leaf), slope in zip(leaves.items(), slopes, strict=True)
        }
        return float(loss.detach()), gradient

    def _states(self, ids_BS: Tensor) -> Tensor:
        states: Tensor = decoder_of(self._model)(input_ids=ids_BS, use_cache=False).last_hidden_state
        return states

    @contextmanager
    def _masked(self, masks: Mapping[int, Tensor]) -> Iterator[None]:
        """Multiply the weights of the chosen experts by their masks for the length of a ``with`` block."""
        handles = [self._experts[layer].register_forward_pre_hook(_Mask(mask_E)) for layer, mask_E in masks.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Mask:
    """Hook before an experts module, which is called with (states, chosen experts, their weights)."""

    def __init__(self, mask_E: Tensor) -> None:
        self._mask_E = mask_E

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden_TD, chosen_TK, weights_TK = arguments
        return hidden_TD, chosen_TK, weights_TK * self._mask_E[chosen_TK]
