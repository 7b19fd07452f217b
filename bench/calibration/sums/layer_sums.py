"""All accumulators of one decoder layer: what the pass shows goes to each, and what it counts is checked.

Shape letters: T tokens of a block, N some of them, E routed experts, K experts per token, R router rows, D hidden size, F expert
width, X inputs of a linear layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import numpy as np
import torch
from torch import Tensor

from bench.calibration.layers.expert_pass import Outputs
from bench.calibration.layers.hidden import Block
from bench.calibration.layers.layer_experts import LayerExperts
from bench.calibration.layers.layer_router import Decision
from bench.calibration.sums.counted import Counted, CountedRows
from bench.calibration.sums.places import OneLayer
from methods.framework.accumulator import Accumulator, Seen, Shown
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import StatsError
from methods.framework.linears import all_sites
from methods.framework.stat_spec import Array, Cost


class LayerSums:
    """Sums of one layer for the statistics asked for; blocks are added between ``begin`` and ``end``."""

    def __init__(self, needs: Collection[str], place: OneLayer, counted: Counted | None = None) -> None:
        """Begin with zeros.

        Args:
            needs: names of statistics; those that are defined in the layer and need tokens are measured.
            place: the layer, and where its sums are kept.
            counted: tokens that are shown to the sums; None: all. The others pass the layer, and nothing of them is added.
        """
        self._accumulators = accumulators(needs, place, {"routed", "sampled"})
        self.shown: frozenset[Shown] = frozenset().union(*(one.shown for one in self._accumulators))
        """What the pass has to keep or compute beyond the forward pass."""
        self._place, self.tokens = place, 0
        self._hits_E = [0] * place.layer.experts
        self._pairs: dict[str, int] = {"inputs": 0, "channels": 0}
        self._passed = {site.name: 0 for part, site in all_sites(place.layer) if part in self.shown}
        self.sampled_N = torch.empty(0, dtype=torch.int64, device=place.device)
        """The sampled tokens of the block."""
        self._counted, self._decided = counted, 0
        self._some: CountedRows | None = None

    def begin(self, block: Block) -> None:
        """Take the tokens of ``block``, which holds whole windows, from now on."""
        lengths = [batch.length for batch in block.batches for _ in range(batch.count)]
        start, stop = block.start, block.stop
        window_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths)).to(self._place.device)
        if self._counted is not None:
            self._some, self._decided = CountedRows(self._counted, start, stop), 0
            start, stop = self._counted.before(start), self._counted.before(stop)
            (window_T,) = self._some.of_block(window_T)
        self.tokens += stop - start
        _, sampled_N = self._place.sampled.within(start, stop)
        self.sampled_N = sampled_N.to(self._place.device)
        if self._some is not None:
            self.sampled_N = self._some.rows_C[self.sampled_N]
        for one in self._accumulators:
            one.begin(window_T, len(lengths))

    def end(self) -> None:
        """Close the block."""
        for one in self._accumulators:
            one.end()

    def linear(self, site: str, start: int, x_NX: Tensor) -> None:
        """Add inputs of linear layers that every token passes.

        Args:
            site: where they are read.
            start: the first of their tokens, as a row of the block; the others follow it.
            x_NX: the inputs.
        """
        if site not in self._passed:
            return
        if self._some is not None:
            (x_NX,) = self._some.of_piece(start, x_NX)
        self._passed[site] += len(x_NX)
        for one in self._accumulators:
            one.linear(site, x_NX)

    def entered(self, residual_TD: Tensor) -> None:
        """Show the residual stream that enters the sub-layer, before its norm."""
        if self._some is not None:
            (residual_TD,) = self._some.of_block(residual_TD)
        for one in self._accumulators:
            one.entered(residual_TD)

    def decided(self, decision: Decision) -> None:
        """Add what the router says of the next tokens of the block."""
        shown: tuple[Tensor, ...] = (decision.logits_NR, decision.routing.scores_TE, decision.indices_NK)
        if self._some is not None:
            start, self._decided = self._decided, self._decided + len(decision.logits_NR)
            shown = self._some.of_piece(start, *shown)
        for one in self._accumulators if len(shown[0]) else ():
            one.decided(*shown)

    def inputs(self, expert: int, tokens_N: Tensor, x_ND: Tensor, gates_N: Tensor) -> None:
        """Add the inputs of one expert before it runs.

        Args:
            expert: its number.
            tokens_N: some of its tokens, as rows of the block.
            x_ND: inputs of its gate and up on them.
            gates_N: weights of its outputs on them.
        """
        if self._some is not None:
            _, x_ND, gates_N = self._some.of_some(tokens_N, x_ND, gates_N)
            if not len(x_ND):
                return
        self._pairs["inputs"] += len(x_ND)
        for one in self._accumulators:
            if "inputs" in one.shown:
                one.inputs(expert, x_ND, gates_N)

    def expert(self, outputs: Outputs) -> None:
        """Add the outputs, not yet weighted, of one expert on some of its tokens."""
        expert, tokens_N, places_N, gates_N, output_ND, channels_NF = outputs
        if self._some is not None:
            channels_NF = None if channels_NF is None else self._some.of_some(tokens_N, channels_NF)[1]
            tokens_N, places_N, gates_N, output_ND = self._some.of_some(tokens_N, places_N, gates_N, output_ND)
            if not len(tokens_N):
                return
        self._hits_E[expert] += len(tokens_N)
        if channels_NF is not None:
            self._pairs["channels"] += len(channels_NF)
        for one in self._accumulators:
            if channels_NF is not None and "channels" in one.shown:
                one.channels(expert, channels_NF, gates_N)
            one.expert(expert, tokens_N, places_N, gates_N, output_ND)

    def removed(self, tokens_N: Tensor, squares_NE: Tensor) -> None:
        """Add the squared changes of some tokens' routed output when each expert alone is removed."""
        if self._some is not None:
            tokens_N, squares_NE = self._some.of_some(tokens_N, squares_NE)
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
        shown: tuple[Tensor, ...] = (input_TD, output_TD, indices_TK, weights_TK)
        for one, some in self._with_counted(shown):
            one.routed(*some)

    def sublayer(self, residual_TD: Tensor, input_TD: Tensor, output_TD: Tensor) -> None:
        """Add what the feed-forward sub-layer makes of all tokens of the block.

        Args:
            residual_TD: the residual stream before its output is added.
            input_TD: its input, after its norm.
            output_TD: its output, shared experts included.
        """
        for one, some in self._with_counted((residual_TD, input_TD, output_TD)):
            one.sublayer(*some)

    def through(self, input_TD: Tensor, output_TD: Tensor) -> None:
        """Add the decoder layer."""
        for one, some in self._with_counted((input_TD, output_TD)):
            one.through(*some)

    def _with_counted(self, shown: tuple[Tensor, ...]) -> Iterator[tuple[Accumulator, tuple[Tensor, ...]]]:
        """Yield each accumulator with the rows of ``shown`` that count, none where there are no such rows."""
        if self._accumulators and self._some is not None:
            shown = self._some.of_block(*shown)
        for one in self._accumulators if len(shown[0]) else ():
            yield one, shown

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
        for site, passed in self._passed.items():
            if passed != self.tokens:
                raise StatsError(
                    f"layer {self._place.index}: inputs of {site!r} were shown for {passed} of {self.tokens} tokens; this is a "
                    "defect of the calibration pass"
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
        if spec.cost in costs and spec.defined_in(place.layer) and issubclass(kind, Accumulator):
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
