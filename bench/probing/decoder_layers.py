"""Single decoder layers of a checkpoint, run on all tokens of a probe at once.

Shape letters: T tokens, D hidden size, E routed experts, X = E + 1, N some tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.calibration.feed_forward import FeedForward
from bench.calibration.layers.embedding import embedded, token_ids
from bench.calibration.layers.hidden import blocks
from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.layer_router import LayerRouter
from bench.calibration.layers.skeleton import Attention, Skeleton
from bench.calibration.layers.weights import WeightReader
from methods.framework.errors import RefusedError
from methods.framework.inventory import LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.kernels.experts import gated_mlp, weighed

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

_GRAM_TOKENS = 256
"""Tokens whose outputs are multiplied in float64 at once."""


@dataclass(frozen=True, slots=True)
class Attended:
    """The states of all tokens between attention and the feed-forward sub-layer: residual stream and normed input."""

    residual_TD: Tensor
    input_TD: Tensor

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.residual_TD.nbytes + self.input_TD.nbytes


class Layers:
    """Runs attention, feed-forward sub-layers and single experts; holds the weights of one attention and one expert."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        windows: Sequence[Sequence[int]],
        device: torch.device,
        dtype: torch.dtype,
        *,
        batch_tokens: int,
        expert_rows: int,
    ) -> None:
        """Lay out the windows, sorted by length, one behind the other.

        Args:
            checkpoint: an open checkpoint.
            windows: token ids of the sequences that every layer is run on.
            device: where layers run.
            dtype: type of weights and activations.
            batch_tokens: most tokens that attention takes at once, unless a single window has more.
            expert_rows: bound on the rows of one matrix product of an expert.
        """
        self._checkpoint, self._device, self._dtype, self._rows = checkpoint, device, dtype, expert_rows
        self.inventory = checkpoint.inventory
        self._windows = sorted(windows, key=len)
        self.tokens = sum(map(len, self._windows))
        (self._block,) = blocks([len(window) for window in self._windows], self.tokens, batch_tokens)
        self._weights = WeightReader(checkpoint, device, dtype)
        self._skeleton = Skeleton(self.inventory.config, self.inventory.layers, device, dtype)
        self._feed_forward = FeedForward(self.inventory.router, self._weights, self._skeleton.activation, expert_rows)
        self._loaded: tuple[int, Attention] | None = None
        self.runs = 0
        """Feed-forward sub-layers run so far, for tests and reports."""

    def embed(self) -> Tensor:
        """Return the embeddings of all tokens."""
        return embedded(self._checkpoint, token_ids(self._windows), self._device, self._dtype)

    def attend(self, layer: int, hidden_TD: Tensor) -> Attended:
        """Return the states after the attention of ``layer``."""
        residual_TD = torch.empty_like(hidden_TD)
        input_TD = self._attention(layer).over(self._block, hidden_TD, residual_TD)
        return Attended(residual_TD, input_TD)

    def _attention(self, layer: int) -> Attention:
        """Return the attention half of ``layer``, which is read unless it was the last one that was asked for."""
        if self._loaded is None or self._loaded[0] != layer:
            self._loaded = layer, self._skeleton.load(layer, self.inventory.layers[layer], self._weights)
        return self._loaded[1]

    def output(self, layer: int, attended: Attended, plan: LayerPlan) -> Tensor:
        """Return the states that leave a decoder layer, (T, D).

        Args:
            layer: its index.
            attended: its states after attention.
            plan: what becomes of the layer; it does not drop the block.
        """
        if plan.drop == "moe":
            return attended.residual_TD
        self.runs += 1
        output_TD = self._feed_forward(self.inventory.layers[layer], attended.input_TD, None, plan)
        return attended.residual_TD + self._attention(layer).added(output_TD)

    def routed(self, layer: int, input_TD: Tensor, plan: LayerPlan) -> Tensor:
        """Return the output of the routed experts alone, (T, D); zeros where the plan drops them.

        Args:
            layer: index of a decoder layer with experts.
            input_TD: input of its experts.
            plan: what becomes of the layer.
        """
        if plan.drop != "none":
            return torch.zeros_like(input_TD)
        self.runs += 1
        return self._feed_forward(_without_shared(self.inventory.layers[layer]), input_TD, None, plan)

    def logits(self, layer: int, input_TD: Tensor) -> Tensor:
        """Return the router logits of ``layer`` in at least float32, (T, E)."""
        router = self._router(layer)
        return torch.cat([router(x_ND).logits_NR for x_ND in input_TD.split(self._rows)])

    def _scores(self, layer: int, input_TD: Tensor) -> Tensor:
        """Return the router's scores of ``layer``, (T, E)."""
        router = self._router(layer)
        return torch.cat([router(x_ND).routing.scores_TE for x_ND in input_TD.split(self._rows)])

    def _router(self, layer: int) -> LayerRouter:
        return LayerRouter.read(self._weights, self.inventory.layers[layer], self.inventory.router, LayerPlan(), None)

    def gram(self, layer: int, input_TD: Tensor, target_TD: Tensor, bound: int) -> Tensor:
        """Return the inner products of all experts' outputs and, last, of the target, (T, X, X) in float64 on the CPU.

        Args:
            layer: a layer whose router rows are its experts.
            input_TD: input of its experts.
            target_TD: what the outputs are compared with.
            bound: bytes that outputs may take; where all tokens' take more, the experts are read once for each part.

        Raises:
            RefusedError: router rows share experts.
        """
        inventory = self.inventory.layers[layer]
        if inventory.expert_map is not None:
            raise RefusedError(f"layer {layer}: router rows share experts already, so there is no output for each row")
        self.runs += 1
        experts, width = LayerExperts(self._weights, inventory, LayerPlan()), inventory.experts + 1
        gram_TXX = torch.empty(len(input_TD), width, width, dtype=torch.float64)
        part = max(1, bound // (width * self.inventory.hidden * self._dtype.itemsize))
        for start in range(0, len(input_TD), part):
            rows = slice(start, min(start + part, len(input_TD)))
            outputs_NXD = torch.empty(
                rows.stop - start, width, input_TD.shape[1], device=self._device, dtype=self._dtype
            )
            outputs_NXD[:, -1] = target_TD[rows]
            scores_NE = self._scores(layer, input_TD[rows]) if self.inventory.router.weighs_inputs else None
            for expert in range(len(experts)):
                network = experts.read(expert)
                taken_ND = input_TD[rows] if scores_NE is None else weighed(input_TD[rows], scores_NE[:, expert])
                parts = zip(taken_ND.split(self._rows), outputs_NXD[:, expert].split(self._rows), strict=True)
                for x_ND, out_ND in parts:
                    matrices, biases = (network.gate_up_2FD, network.down_DF), network.biases
                    out_ND.copy_(gated_mlp(x_ND, *matrices, self._skeleton.activation, None, biases))
            for some in range(0, len(outputs_NXD), _GRAM_TOKENS):
                exact_NXD = outputs_NXD[some : some + _GRAM_TOKENS].double()
                gram_TXX[start + some : start + some + len(exact_NXD)] = exact_NXD @ exact_NXD.mT
        return gram_TXX


def _without_shared(layer: LayerInventory) -> LayerInventory:
    """Return ``layer`` without its shared experts."""
    return replace(layer, tensors=tuple(entry for entry in layer.tensors if not entry.role.startswith("shared.")))
