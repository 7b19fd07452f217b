"""Statistics of gradients: the whole model is resident, and one window after another goes forward and backward through it.

All follow from two things per MoE layer: what enters the routed experts and the gradient in the sum y that leaves them. Since
y = sum_j g_j f_j, the gradient in f_j is g_j times that in y, so weights stay frozen, no gradient is kept for any of them, and
memory is the model with the activations of one window. Sums that are as large as the experts lie in files, those of one
expert in memory. Shape letters: T tokens of a window, K experts per token, D hidden size.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.calibration.conditions import Conditions
from bench.calibration.resident import frozen_model
from bench.calibration.sums.disk_array import DiskArrays, disk_bytes
from bench.calibration.sums.gradient_sums import GradientSums
from bench.calibration.sums.places import ModelPlace, OneLayer
from bench.models.decoder import decoder_of
from bench.models.output_head import OutputHead
from methods.framework.stat_spec import Array

if TYPE_CHECKING:
    from torch import nn

    from bench.calibration.decide import Progress
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus


class Passed(NamedTuple):
    """What one window shows of the routed experts of one layer.

    Args:
        input_TD: what enters them.
        rows_TK: router rows that the tokens choose.
        weights_TK: their weights.
        slope_TD: gradient of the loss in the sum of the weighted outputs.
    """

    input_TD: Tensor
    rows_TK: Tensor
    weights_TK: Tensor
    slope_TD: Tensor


class ResidentModel:
    """A transformers model with frozen weights, whose losses are differentiated in the outputs of its routed experts."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        """Load the model.

        Args:
            checkpoint: an open checkpoint that fits into the memory of ``device`` as a whole.
            device: where the model is.
            dtype: type of its weights and activations.

        Raises:
            CheckpointError: as ``bench.calibration.resident.frozen_model``.
        """
        self._model, self.experts = frozen_model(checkpoint, device, dtype)
        self._head = OutputHead.of(self._model)
        self._device = device

    def backward(self, window: Sequence[int]) -> dict[int, Passed]:
        """Return what ``window`` shows of each MoE layer; the loss is the next-token cross-entropy summed over it, in nats."""
        taps = {layer: _Tap() for layer in self.experts}
        handles = [self.experts[layer].register_forward_hook(tap) for layer, tap in taps.items()]
        try:
            with torch.enable_grad():
                ids_BS = torch.tensor([list(window)], device=self._device)
                states_BSD = decoder_of(self._model)(input_ids=ids_BS, use_cache=False).last_hidden_state
                logits_TV = self._head(states_BSD[0, :-1])
                wide = torch.promote_types(logits_TV.dtype, torch.float32)
                loss = F.cross_entropy(logits_TV.to(wide), ids_BS[0, 1:], reduction="sum")
                offsets = [tap.offset_TD for tap in taps.values()]
                # A window of one token predicts nothing.
                slopes = (
                    torch.autograd.grad(loss, offsets) if len(window) > 1 else [torch.zeros_like(o) for o in offsets]
                )
        finally:
            for handle in handles:
                handle.remove()
        return {layer: Passed(*tap.seen, slope) for (layer, tap), slope in zip(taps.items(), slopes, strict=True)}


class _Tap:
    """Hook behind an experts module, which is called with (states, chosen rows, their weights)."""

    seen: tuple[Tensor, Tensor, Tensor]
    offset_TD: Tensor

    def __call__(self, module: nn.Module, arguments: tuple[Any, ...], output_TD: Tensor) -> Tensor:
        """Keep the arguments, and add zeros in which a gradient can be taken."""
        hidden_TD, rows_TK, weights_TK = arguments
        self.seen = (hidden_TD.detach(), rows_TK, weights_TK.detach())
        self.offset_TD = torch.zeros_like(output_TD, requires_grad=True)
        return output_TD + self.offset_TD


def measure_gradients(
    checkpoint: Checkpoint,
    corpus: Corpus,
    needs: Collection[str],
    conditions: Conditions,
    progress: Progress | None = None,
    arrays: DiskArrays | None = None,
) -> dict[str, tuple[Array | None, ...]]:
    """Return those of ``needs`` that have cost ``gradient``.

    Args:
        checkpoint: an open checkpoint that fits into the memory of the device as a whole.
        corpus: windows, each on its own: they are never padded, and how many there are beside it changes nothing.
        needs: names of statistics.
        conditions: device and type of weights and activations; sums over tokens are float64.
        progress: called after each window.
        arrays: takes statistics that are too big for memory; None keeps them in files that have no name.

    Raises:
        CheckpointError: see ``bench.calibration.resident.frozen_model``.
        StatsError: a value is not finite, or there is no room for the files.
    """
    device, dtype = torch.device(conditions.device), getattr(torch, conditions.dtype)
    layers = checkpoint.inventory.layers
    place = ModelPlace.without_tokens(checkpoint.inventory, device, conditions.effort.scratch, arrays)
    place.arrays.require(disk_bytes(checkpoint.inventory, needs, 0))
    model = ResidentModel(checkpoint, device, dtype)
    sums = {
        layer: GradientSums(needs, checkpoint, OneLayer.of(place, layer, layers[layer]), experts, dtype)
        for layer, experts in model.experts.items()
    }
    for number, window in enumerate(corpus.windows):
        for layer, passed in model.backward(window).items():
            sums[layer].add(*passed, targets=len(window) - 1)
        if progress is not None:
            progress(number + 1, len(corpus.windows))
    found = {layer: total.finished() for layer, total in sums.items()}
    return {name: tuple(found.get(layer, {}).get(name) for layer in range(len(layers))) for name in needs}
