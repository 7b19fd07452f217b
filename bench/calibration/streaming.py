"""The streamed pass: decoder layer by decoder layer over all tokens.

Shape letters: T tokens of a block, B sequences of one length, S their length, D hidden size.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from bench.calibration.feed_forward import FeedForward
from bench.calibration.layers.hidden import Block, Boundaries, HiddenStates, blocks
from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.sample import Sample
from bench.calibration.layers.skeleton import Attention, Skeleton
from bench.calibration.layers.weights import WeightReader
from bench.calibration.sums.disk_array import DiskArrays, disk_bytes
from bench.calibration.sums.layer_sums import LayerSums, check_finite
from bench.calibration.sums.sampled_sums import Sampling
from bench.calibration.sums.weight_statistics import weight_statistics
from methods.framework.inventory import LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import CATALOGUE, Array, Stats

if TYPE_CHECKING:
    from bench.calibration.decide import Decide, Progress
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus

Values = dict[str, tuple[Array | None, ...]]

_STREAMS = 5
"""Copies of a block's hidden states that are alive at once: layer input, residual, norm's output, MoE output, one more."""


class StreamedPass:
    """One measurement; ``run`` performs it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        needs: Collection[str],
        *,
        device: str,
        dtype: str,
        hidden_bytes: int,
        boundary_tokens: int,
        batch_tokens: int,
        expert_rows: int,
        scratch: Path | None,
        sampled_tokens: int = 4096,
        cka_tokens: int = 1024,
        output_bytes: int = 128 << 20,
        arrays: DiskArrays | None = None,
        known: Mapping[str, tuple[Array | None, ...]] | None = None,
    ) -> None:
        """Lay out the tokens.

        Args:
            needs: statistics that need tokens.
            arrays: takes statistics that are too big for memory; None keeps them in files that have no name.
            known: statistics of weights and gradients, for the rule that decides in sequential propagation.

        The others are those of ``bench.calibration.calibrate.calibrate``.
        """
        self._checkpoint, self._inventory, self._needs = checkpoint, checkpoint.inventory, frozenset(needs)
        self._known = dict(known or {})
        self._device, self._dtype = torch.device(device), getattr(torch, dtype)
        # Sorting by length puts equal lengths side by side, so that batches need no padding.
        self._windows = sorted(corpus.windows, key=len)
        hidden = self._inventory.hidden
        row_bytes = _STREAMS * hidden * self._dtype.itemsize
        self._blocks = blocks([len(window) for window in self._windows], hidden_bytes // row_bytes, batch_tokens)
        self._states = HiddenStates(self._blocks, hidden, self._device, self._dtype, scratch)
        self._boundaries = None
        if "hidden_cosine" in needs:
            count = len(self._inventory.layers) + 1
            self._boundaries = Boundaries(self._blocks[-1].stop, hidden, count, boundary_tokens, scratch)
        sampled = Sample(self._blocks[-1].stop, sampled_tokens)
        arrays = arrays or DiskArrays(scratch, named=False)
        self._sampling = Sampling(sampled, Sample(sampled.count, cka_tokens), arrays, scratch)
        self._weights = WeightReader(checkpoint, self._device, self._dtype)
        self._skeleton = Skeleton(self._inventory.config, self._inventory.layers, self._device, self._dtype)
        self._feed_forward = FeedForward(
            self._inventory.router, self._weights, self._skeleton.activation, expert_rows, output_bytes
        )

    @torch.inference_mode()
    def run(
        self,
        decide: Decide | None = None,
        progress: Progress | None = None,
        observe: Callable[[int, Tensor], None] | None = None,
    ) -> Values:
        """Measure and return the values of all statistics.

        Args:
            decide: rule for sequential propagation; None propagates the original states.
            progress: called after each decoder layer.
            observe: called with (boundary, states) of each block in order of tokens, for tests.
        """
        self._sampling.arrays.require(disk_bytes(self._inventory, self._needs, self._sampling.tokens.count))
        depth = len(self._inventory.layers)
        values: dict[str, list[Array | None]] = {
            name: [None] * depth for name in self._needs if CATALOGUE[name].scope != "model"
        }
        self._embed(observe)
        for index, layer in enumerate(self._inventory.layers):
            attention = self._skeleton.load(index, layer, self._weights)
            sums = LayerSums(self._needs, layer, self._inventory.hidden, self._device, index, self._sampling)
            rule = decide if layer.mlp == "moe" else None
            for block in self._blocks:
                outcome_TD = self._step(block, attention, layer, sums, None, in_place=rule is None)
                if rule is None:
                    self._keep(index + 1, block, outcome_TD, observe)
            experts = LayerExperts(self._weights, layer, LayerPlan()) if layer.mlp == "moe" else None
            for name, value in sums.finished(experts).items():
                values[name][index] = value
            if rule is not None:
                measured = {name: tuple(column) for name, column in values.items()}
                so_far = Stats({**measured, **self._known}, sums.tokens)
                means = so_far.values.get("routed_output_mean")
                plan = rule(index, so_far)
                self._compress(index, layer, attention, plan, means[index] if means else None, observe)
            if progress is not None:
                progress(index + 1, depth)
        result: Values = {name: tuple(column) for name, column in values.items()}
        if self._boundaries is not None:
            result["hidden_cosine"] = (self._boundaries.mean_cosine().numpy(),)
        return result

    def _embed(self, observe: Callable[[int, Tensor], None] | None) -> None:
        """Fill the hidden states with embeddings, of which only the rows that occur are read."""
        (entry,) = (entry for entry in self._inventory.outer if entry.role == "embedding")
        ids_T = torch.from_numpy(np.concatenate([np.asarray(window, dtype=np.int64) for window in self._windows]))
        for block in self._blocks:
            rows, positions_T = ids_T[block.start : block.stop].unique(return_inverse=True)
            table = self._checkpoint.read(entry, rows=tuple(rows.tolist())).to(self._device, self._dtype)
            self._keep(0, block, table[positions_T.to(self._device)], observe)

    def _keep(
        self, boundary: int, block: Block, hidden_TD: Tensor, observe: Callable[[int, Tensor], None] | None
    ) -> None:
        self._states.store(block, hidden_TD)
        if self._boundaries is not None:
            self._boundaries.take(boundary, block, hidden_TD)
        if observe is not None:
            observe(boundary, hidden_TD)

    def _step(
        self,
        block: Block,
        attention: Attention,
        layer: LayerInventory,
        sums: LayerSums | None,
        plan: LayerPlan | None,
        means_ED: Array | None = None,
        *,
        in_place: bool,
    ) -> Tensor:
        """Return the layer's output on ``block``; ``in_place`` allows the stored states to be overwritten."""
        input_TD = self._states.load(block)
        keep_input = not in_place or (sums is not None and sums.wants("block_cosine"))
        residual_TD = torch.empty_like(input_TD) if keep_input else input_TD
        mlp_input_TD = torch.empty_like(input_TD)
        for batch in block.batches:
            rows = slice(batch.start - block.start, batch.stop - block.start)
            residual_BSD, taken_BSD = attention(input_TD[rows].view(batch.count, batch.length, -1))
            residual_TD[rows] = residual_BSD.flatten(0, 1)
            mlp_input_TD[rows] = taken_BSD.flatten(0, 1)
        if plan is not None and plan.drop == "moe":
            return residual_TD
        if sums is not None:
            sums.begin(block)
        output_TD = self._feed_forward(layer, mlp_input_TD, sums, plan, means_ED)
        if sums is not None:
            sums.sublayer(residual_TD, mlp_input_TD, output_TD)
        residual_TD += output_TD
        if sums is not None:
            sums.layer(input_TD, residual_TD)
            sums.end()
        return residual_TD

    def _compress(
        self,
        index: int,
        layer: LayerInventory,
        attention: Attention,
        plan: LayerPlan,
        means_ED: Array | None,
        observe: Callable[[int, Tensor], None] | None,
    ) -> None:
        """Run the layer once more as ``plan`` leaves it, to make the next layer's input."""
        for block in self._blocks:
            if plan.drop == "block":
                outcome_TD = self._states.load(block)
            else:
                outcome_TD = self._step(block, attention, layer, None, plan, means_ED, in_place=True)
            self._keep(index + 1, block, outcome_TD, observe)


def measure_weights(
    checkpoint: Checkpoint,
    needs: Collection[str],
    device: str,
    dtype: str,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Values:
    """Return those of ``needs`` that describe weights alone, without running the model."""
    reader = WeightReader(checkpoint, torch.device(device), getattr(torch, dtype))
    layers = checkpoint.inventory.layers
    measured = []
    for index, layer in enumerate(layers):
        measured.append(weight_statistics(reader, layer, needs, scratch))
        check_finite(index, measured[-1])
        if progress is not None:
            progress(index + 1, len(layers))
    return {name: tuple(values.get(name) for values in measured) for name in needs}
