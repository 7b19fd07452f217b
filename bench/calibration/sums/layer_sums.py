"""All accumulators of one decoder layer: what the pass shows goes to each, and what it counts is checked.

Shape letters: T tokens of a block, N some of them, E routed experts, K experts per token, R router rows, D hidden size, F expert
width.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch
from torch import Tensor

from bench.calibration.layers.expert_pass import Outputs
from bench.calibration.layers.hidden import Block
from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.layer_router import Decision
from bench.calibration.sums.places import OneLayer
from methods.framework.accumulator import Accumulator, Seen, Shown
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import StatsError
from methods.framework.stat_spec import Array, Cost


class LayerSums:
    """Sums of one layer for the statistics asked for; blocks are added between ``begin`` and ``end``."""

    def __init__(self, needs: Collection[str], place: OneLayer) -> None:
        """Begin with zeros, for those of ``needs`` that are defined in the layer and need tokens."""
        self._accumulators = accumulators(needs, place, {"routed", "sampled"})
        self._place, self.tokens = place, 0
        self._hits_E = [0] * place.layer.experts
        self._pairs: dict[str, int] = {"inputs": 0, "channels": 0}
        self.shown: frozenset[Shown] = frozenset().union(*(one.shown for one in self._accumulators))
        """What the pass has to keep or compute beyond the forward pass."""
        self.sampled_N = torch.empty(0, dtype=torch.int64, device=place.device)
        """The sampled tokens of the block."""

    def begin(self, block: Block) -> None:
        """Take the tokens of ``block``, which holds whole windows, from now on."""
        lengths = [batch.length for batch in block.batches for _ in range(batch.count)]
        self.tokens += block.stop - block.start
        window_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(self._place.device)
        _, sampled_N = self._place.sampled.within(block.start, block.stop)
        self.sampled_N = sampled_N.to(self._place.device)
        for one in self._accumulators:
            one.begin(window_T, len(lengths))

    def end(self) -> None:
        """Close the block."""
        for one in self._accumulators:
            one.end()

    def entered(self, residual_TD: Tensor) -> None:
        """Show the residual stream that enters the sub-layer, before its norm."""
        for one in self._accumulators:
            one.entered(residual_TD)

    def decided(self, decision: Decision) -> None:
        """Add what the router says of some tokens."""
        for one in self._accumulators:
            one.decided(decision.logits_NR, decision.routing.scores_TE, decision.indices_NK)

    def inputs(self, expert: int, x_ND: Tensor, gates_N: Tensor) -> None:
        """Add the inputs of one expert before it runs.

        Args:
            expert: its number.
            x_ND: inputs of its gate and up on some of its tokens.
            gates_N: weights of its outputs on them.
        """
        self._pairs["inputs"] += len(x_ND)
        for one in self._accumulators:
            if "inputs" in one.shown:
                one.inputs(expert, x_ND, gates_N)

    def expert(self, outputs: Outputs) -> None:
        """Add the outputs, not yet weighted, of one expert on some of its tokens."""
        expert, tokens_N, places_N, gates_N, output_ND, channels_NF = outputs
        self._hits_E[expert] += len(tokens_N)
        if channels_NF is not None:
            self._pairs["channels"] += len(channels_NF)
        for one in self._accumulators:
            if channels_NF is not None and "channels" in one.shown:
                one.channels(expert, channels_NF, gates_N)
            one.expert(expert, tokens_N, places_N, gates_N, output_ND)

    def removed(self, tokens_N: Tensor, squares_NE: Tensor) -> None:
        """Add the squared changes of some tokens' routed output when each expert alone is removed."""
        for one in self._accumulators:
            one.removed(tokens_N, squares_NE)

    def sampled_logits(self, logits_NR: Tensor) -> None:
        """Add router logits of sampled tokens."""
        for one in self._accumulators:
            one.sampled_logits(logits_NR)

    def sampled_outputs(self, outputs_NED: Tensor) -> None:
        """Add the outputs of all experts on the next sampled tokens."""
        for one in self._accumulators:
            one.sampled_outputs(outputs_NED)

    def routed(self, input_TD: Tensor, output_TD: Tensor, indices_TK: Tensor, weights_TK: Tensor) -> None:
        """Add what the routed experts make of all tokens of the block.

        Args:
            input_TD: input of the MoE block, after its norm.
            output_TD: sum of the weighted outputs of the routed experts.
            indices_TK: experts that are chosen, as in ``Decision``.
            weights_TK: their weights.
        """
        for one in self._accumulators:
            one.routed(input_TD, output_TD, indices_TK, weights_TK)

    def sublayer(self, residual_TD: Tensor, input_TD: Tensor, output_TD: Tensor) -> None:
        """Add what the feed-forward sub-layer makes of all tokens of the block.

        Args:
            residual_TD: the residual stream before its output is added.
            input_TD: its input, after its norm.
            output_TD: its output, shared experts included.
        """
        for one in self._accumulators:
            one.sublayer(residual_TD, input_TD, output_TD)

    def through(self, input_TD: Tensor, output_TD: Tensor) -> None:
        """Add the decoder layer."""
        for one in self._accumulators:
            one.through(input_TD, output_TD)

    def finished(self, experts: LayerExperts) -> dict[str, Array]:
        """Return the statistics of the layer; ``experts`` are read again for what combines sums with weights.

        Raises:
            StatsError: tokens were lost or counted twice, or a value is not finite.
        """
        layer, counted = self._place.layer, sum(self._hits_E)
        due = self.tokens * layer.top_k
        if layer.mlp == "moe" and layer.expert_map is None and counted != due:
            raise StatsError(f"layer {self._place.index}: experts saw {counted} (token, expert) pairs instead of {due}")
        for kind in self._pairs.keys() & self.shown:
            if self._pairs[kind] != counted:
                raise StatsError(
                    f"layer {self._place.index}: {kind} were shown for {self._pairs[kind]} (token, expert) pairs instead of "
                    f"{counted}; this is a defect of the calibration pass"
                )
        return measured(self._accumulators, self._place.index, Seen(self.tokens, self._hits_E, experts))


def accumulators(needs: Collection[str], place: OneLayer, costs: Collection[Cost]) -> list[Accumulator]:
    """Return the accumulators of the statistics asked for, as far as they are defined in a layer and have one of some costs.

    Args:
        needs: names of the statistics that are asked for.
        place: the layer, and where its sums are kept.
        costs: classes of cost in the catalogue; statistics of others are left out.
    """
    wanted: dict[type[Accumulator], set[str]] = {}
    for name in sorted(needs):
        spec, kind = CATALOGUE[name], CATALOGUE.kind(name)
        if spec.cost in costs and (spec.scope == "block" or place.layer.mlp == "moe") and issubclass(kind, Accumulator):
            wanted.setdefault(kind, set()).add(name)
    return [kind(frozenset(names), place) for kind, names in wanted.items()]


def measured(done: Collection[Accumulator], index: int, seen: Seen) -> dict[str, Array]:
    """Return what the accumulators of one layer have measured, by statistic.

    Args:
        done: the accumulators, after the last token.
        index: of the decoder layer, for messages.
        seen: what the pass knows of the layer by itself.

    Raises:
        StatsError: a value is not finite, with the layer and the statistic.
    """
    values: dict[str, Array] = {}
    for one in done:
        values |= one.finished(seen)
    for name, value in values.items():
        # Memory maps were checked on their way to the file.
        if not isinstance(value, np.memmap) and not torch.from_numpy(value.reshape(-1)).isfinite().all():
            raise StatsError(
                f"layer {index}: {name} is not finite; the weights hold inf or nan, or dtype overflows: use float32"
            )
    return values
