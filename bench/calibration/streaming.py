"""The streamed pass: decoder layer by decoder layer over all tokens.

Shape letters: T tokens of a block, D hidden size, E routed experts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.calibration.conditions import Conditions
from bench.calibration.feed_forward import FeedForward
from bench.calibration.layers.embedding import embedded, token_ids
from bench.calibration.layers.hidden import Block, HiddenStates, blocks
from bench.calibration.layers.layer_experts import LayerExperts, Made
from bench.calibration.layers.skeleton import Attention, Skeleton
from bench.calibration.layers.weights import WeightReader
from bench.calibration.sums.counted import Counted
from bench.calibration.sums.disk_array import DiskArrays, disk_bytes
from bench.calibration.sums.layer_sums import LayerSums, accumulators, measured
from bench.calibration.sums.places import ModelPlace, OneLayer, Samples
from methods.framework.accumulator import ModelAccumulator, Seen
from methods.framework.catalogue import CATALOGUE
from methods.framework.inventory import LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.stat_spec import Array
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from bench.calibration.decide import Decide, Progress
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus

Values = dict[str, tuple[Array | None, ...]]

Observe = Callable[[int, Tensor], None]
"""Called with (boundary, states) of each block in order of tokens."""


@dataclass(frozen=True, slots=True)
class Became:
    """What a layer has become for those after it.

    Args:
        plan: what becomes of it.
        means_ED: mean outputs of its experts, for a plan with constants.
        made: makes its experts, for a plan that changes them inside.
    """

    plan: LayerPlan
    means_ED: Array | None = None
    made: Made | None = None


_STREAMS = 5
"""Copies of a block's hidden states that are alive at once: layer input, residual, norm's output, MoE output, one more."""


class StreamedPass:
    """One measurement; ``run`` performs it."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        corpus: Corpus,
        needs: Collection[str],
        conditions: Conditions,
        arrays: DiskArrays | None = None,
        known: Mapping[str, tuple[Array | None, ...]] | None = None,
    ) -> None:
        """Lay out the tokens.

        Args:
            checkpoint: an open checkpoint.
            corpus: windows of token ids.
            needs: statistics that need tokens.
            conditions: device, type and bounds.
            arrays: takes statistics that are too big for memory; None keeps them in files that have no name.
            known: statistics of weights and gradients, for the rule that decides in sequential propagation.
        """
        effort = conditions.effort
        self._checkpoint, self._inventory, self._needs = checkpoint, checkpoint.inventory, frozenset(needs)
        self._known = dict(known or {})
        self._device, self._dtype = torch.device(conditions.device), getattr(torch, conditions.dtype)
        # Sorting by length puts equal lengths side by side, so that batches need no padding.
        order = sorted(range(len(corpus.windows)), key=lambda index: len(corpus.windows[index]))
        self._windows = [corpus.windows[index] for index in order]
        marks = None if corpus.marks is None else [mark for index in order for mark in corpus.marks[index]]
        self._counted = None if marks is None else Counted(torch.tensor(marks, device=torch.device(conditions.device)))
        hidden, depth = self._inventory.hidden, len(self._inventory.layers)
        rows = effort.hidden_bytes // (_STREAMS * hidden * self._dtype.itemsize)
        self._blocks = blocks([len(window) for window in self._windows], rows, effort.batch_tokens)
        kept = torch.bfloat16 if effort.rounded_states else self._dtype
        self._states = HiddenStates(self._blocks, hidden, self._device, self._dtype, effort.scratch, kept)
        samples = Samples.of(corpus.counted, conditions.sampled_tokens, effort.cka_tokens, effort.boundary_tokens)
        arrays = arrays or DiskArrays(effort.scratch, named=False)
        self._place = ModelPlace(hidden, depth, self._device, effort.scratch, samples, arrays)
        self._of_model = [
            kind(self._needs, self._place)
            for kind in dict.fromkeys(CATALOGUE.kind(name) for name in sorted(needs))
            if issubclass(kind, ModelAccumulator)
        ]
        self._weights = WeightReader(checkpoint, self._device, self._dtype)
        self._skeleton = Skeleton(self._inventory.config, self._inventory.layers, self._device, self._dtype)
        self._feed_forward = FeedForward(
            self._inventory.router, self._weights, self._skeleton.activation, effort.expert_rows, effort.output_bytes
        )

    def run(
        self, decide: Decide | None = None, progress: Progress | None = None, observe: Observe | None = None
    ) -> Values:
        """Measure and return the values of all statistics.

        Args:
            decide: rule for sequential propagation; None propagates the original states.
            progress: called after each decoder layer.
            observe: sees the states at every boundary, for tests.
        """
        place = self._place
        place.arrays.require(disk_bytes(self._inventory, self._needs, place.samples.sampled.count))
        values: dict[str, list[Array | None]] = {
            name: [None] * place.depth for name in self._needs if CATALOGUE[name].scope != "model"
        }
        tokens = 0

        def rule(index: int) -> Became:
            assert decide is not None
            measured_so_far = {name: tuple(column) for name, column in values.items()}
            stats = Stats({**measured_so_far, **self._known}, tokens)
            plan = decide(index, stats)
            means = values.get("routed_output_mean") or self._known.get("routed_output_mean")
            return Became(plan, means[index] if means else None, decide.experts(index, plan, stats))

        decided = self._inventory.moe_layers if decide is not None else ()
        for index, counted, found in self.layers(decided, rule, progress, observe):
            tokens = counted  # which the rule sees
            for name, value in found.items():
                values[name][index] = value
        result: Values = {name: tuple(column) for name, column in values.items()}
        return result | self.of_model()

    @torch.inference_mode()
    def layers(
        self,
        changed: Collection[int] = (),
        became: Callable[[int], Became] | None = None,
        progress: Progress | None = None,
        observe: Observe | None = None,
    ) -> Iterator[tuple[int, int, dict[str, Array]]]:
        """Measure one decoder layer after the other; what is yielded of one needs nothing of those after it.

        Args:
            changed: layers that the next one sees as they are compressed.
            became: says what such a layer has become; asked when the layer after it is.
            progress: called after each decoder layer.
            observe: sees the states at every boundary, for tests.

        Yields:
            Index of the layer, tokens that counted, and its statistics.
        """
        self._embed(observe)
        for index, layer in enumerate(self._inventory.layers):
            attention = self._skeleton.load(index, layer, self._weights)
            sums = LayerSums(self._needs, OneLayer.of(self._place, index, layer), self._counted)
            for block in self._blocks:
                outcome_TD = self._step(
                    block, attention, self._feed_forward, layer, sums, in_place=index not in changed
                )
                if index not in changed:
                    self._keep(index + 1, block, outcome_TD, observe)
            found = sums.finished(LayerExperts(self._weights, layer, LayerPlan()))
            tokens = sums.tokens
            del sums  # and the Gram matrix in it
            yield index, tokens, found
            del found  # whoever took it says how long it stays
            if index in changed:
                assert became is not None
                self._compress(index, layer, attention, became(index), observe)
            if progress is not None:
                progress(index + 1, self._place.depth)

    def of_model(self) -> Values:
        """Return what is measured once for the whole model, after the last layer."""
        result: Values = {}
        for one in self._of_model:
            result |= {name: (value,) for name, value in one.finished().items()}
        return result

    def _embed(self, observe: Observe | None) -> None:
        """Fill the hidden states with embeddings."""
        ids_T = token_ids(self._windows)
        for block in self._blocks:
            hidden_TD = embedded(self._checkpoint, ids_T[block.start : block.stop], self._device, self._dtype)
            self._keep(0, block, hidden_TD, observe)

    def _keep(self, boundary: int, block: Block, hidden_TD: Tensor, observe: Observe | None) -> None:
        self._states.store(block, hidden_TD)
        start, counted_TD = block.start, hidden_TD
        if self._of_model and self._counted is not None:
            start = self._counted.before(block.start)
            counted_TD = hidden_TD[self._counted.rows(block.start, block.stop)]
        for one in self._of_model:
            one.boundary(boundary, start, counted_TD)
        if observe is not None:
            observe(boundary, hidden_TD)

    def _step(
        self,
        block: Block,
        attention: Attention,
        feed_forward: FeedForward,
        layer: LayerInventory,
        sums: LayerSums | None = None,
        became: Became | None = None,
        *,
        in_place: bool,
    ) -> Tensor:
        """Return the layer's output on ``block``; ``in_place`` allows the stored states to be overwritten."""
        input_TD = self._states.load(block)
        keep_input = not in_place or (sums is not None and "layer_input" in sums.shown)
        residual_TD = torch.empty_like(input_TD) if keep_input else input_TD
        if sums is not None:
            sums.begin(block)
        show = sums.linear if sums is not None and "attention" in sums.shown else None
        mlp_input_TD = attention.over(block, input_TD, residual_TD, show)
        if became is not None and became.plan.drop == "moe":
            return residual_TD
        if sums is not None:
            sums.entered(residual_TD)
        changed = (None, None, None) if became is None else (became.plan, became.means_ED, became.made)
        output_TD = attention.added(feed_forward(layer, mlp_input_TD, sums, *changed))
        if sums is not None:
            sums.sublayer(residual_TD, mlp_input_TD, output_TD)
        residual_TD += output_TD
        if sums is not None:
            sums.through(input_TD, residual_TD)
            sums.end()
        return residual_TD

    def _compress(
        self, index: int, layer: LayerInventory, attention: Attention, became: Became, observe: Observe | None
    ) -> None:
        """Run the layer once more as it has become, to make the next layer's input."""
        if became.made is not None and len(self._blocks) > 1:
            became = replace(became, made=cache(became.made))  # each block needs all of them
        for block in self._blocks:
            if became.plan.drop == "block":
                outcome_TD = self._states.load(block)
            else:
                outcome_TD = self._step(block, attention, self._feed_forward, layer, None, became, in_place=True)
            self._keep(index + 1, block, outcome_TD, observe)


def measure_weights(
    checkpoint: Checkpoint, needs: Collection[str], conditions: Conditions, progress: Progress | None = None
) -> Values:
    """Return those of ``needs`` that describe weights alone, without running the model.

    Args:
        checkpoint: an open checkpoint.
        needs: names of statistics.
        conditions: device, type and folder for temporary files.
        progress: called after each decoder layer.
    """
    device, scratch = torch.device(conditions.device), conditions.effort.scratch
    reader = WeightReader(checkpoint, device, getattr(torch, conditions.dtype))
    layers, place = checkpoint.inventory.layers, ModelPlace.without_tokens(checkpoint.inventory, device, scratch)
    found = []
    for index, layer in enumerate(layers):
        of_layer = accumulators(needs, OneLayer.of(place, index, layer), {"weights"})
        seen = Seen(0, [0] * layer.experts, LayerExperts(reader, layer, LayerPlan()))
        found.append(measured(of_layer, index, seen))
        if progress is not None:
            progress(index + 1, len(layers))
    return {name: tuple(values.get(name) for values in found) for name in needs}
