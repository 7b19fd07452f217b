"""Three ways to run the experts of a layer on tokens; each yields the routed outputs, expert by expert.

``routed`` runs experts on their own tokens. ``candidates`` runs those that a token chooses and the next best one, and
``dense`` runs all; these two also keep the outputs, so they take as many tokens at once as fit into a buffer.

Shape letters: T tokens of a block, N some of them, K experts per token, S = K + 1, E experts, D hidden size, F expert width, P
(token, expert) pairs of one expert.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.calibration.layers.layer_experts import LayerExperts
from methods.kernels.experts import Activation, Assignment, gated_mlp, weighed


class Outputs(NamedTuple):
    """Outputs of one expert on some of the tokens that are routed to it.

    Args:
        expert: its number.
        tokens_N: tokens, as rows of the block.
        places_N: its column in the routing decision of each.
        gates_N: weights of the outputs.
        output_ND: the outputs, not yet weighted; they may be overwritten.
        channels_NF: what they are computed from, the inputs of down; None unless asked for.
    """

    expert: int
    tokens_N: Tensor
    places_N: Tensor
    gates_N: Tensor
    output_ND: Tensor
    channels_NF: Tensor | None = None


class ExpertPass:
    """Runs the experts of one layer on the tokens of one block."""

    def __init__(
        self,
        experts: LayerExperts,
        input_TD: Tensor,
        indices_TK: Tensor,
        weights_TK: Tensor,
        targets: int,
        activation: Activation,
        rows: int,
        keep_channels: bool = False,
        scores_TE: Tensor | None = None,
    ) -> None:
        """Take the tokens and where they are routed to.

        Args:
            experts: the layer's experts, read one by one.
            input_TD: input of the experts on the tokens of the block.
            indices_TK: experts of each token, as in ``Decision``.
            weights_TK: factors on their outputs.
            targets: values that an index can take: experts, then constants and nothing, which are not run.
            activation: applied to the outputs of gate.
            rows: bound on the rows of one matrix product.
            keep_channels: whether outputs come with the inputs of down.
            scores_TE: factors on what each expert takes in; None: there are none.
        """
        self._scores_TE = scores_TE
        self._keep_channels = keep_channels
        self._experts, self._input_TD, self._activation, self._rows = experts, input_TD, activation, rows
        self._indices_TK, self._weights_TK, self._targets = indices_TK, weights_TK, targets

    def indices(self, tokens_N: Tensor) -> Tensor:
        """Return the experts that ``tokens_N`` choose, shape (N, K)."""
        return self._indices_TK[tokens_N]

    def assignment(self, tokens_N: Tensor | None) -> Assignment:
        """Return the decision on ``tokens_N`` (None: all) by expert; its tokens are places in ``tokens_N``."""
        if tokens_N is None:
            return Assignment.of(self._indices_TK, self._weights_TK, self._targets)
        return Assignment.of(self._indices_TK[tokens_N], self._weights_TK[tokens_N], self._targets)

    def inputs(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield (expert, some of its tokens, its inputs on them, their weights) without running it, expert by expert."""
        assignment = self.assignment(None)
        for expert in range(len(self._experts)):
            for tokens_N, gates_N in assignment.pieces(expert, self._rows):
                yield expert, tokens_N, self._input(tokens_N, expert), gates_N

    def routed(self, tokens_N: Tensor | None) -> Iterator[Outputs]:
        """Run the experts on those of ``tokens_N`` (None: all tokens) that choose them."""
        assignment = self.assignment(tokens_N)
        for expert in range(len(self._experts)):
            if not assignment.count(expert):
                continue
            run = self._reader(expert)
            for piece in assignment.slices(expert, self._rows):
                rows_N = assignment.tokens[piece] if tokens_N is None else tokens_N[assignment.tokens[piece]]
                output_ND, channels_NF = run(self._input(rows_N, expert))
                places_N, gates_N = assignment.places[piece], assignment.gates[piece]
                yield Outputs(expert, rows_N, places_N, gates_N, output_ND, channels_NF)

    def candidates(self, tokens_N: Tensor, next_N1: Tensor, out_NSD: Tensor) -> Iterator[Outputs]:
        """Run the experts that some tokens choose, and one more of each; yield the outputs of those that were chosen.

        Args:
            tokens_N: the tokens, as rows of the block.
            next_N1: one more expert for each, whose output is kept but not yielded; (N, 0) for none.
            out_NSD: takes all outputs, not yet weighted, place s of a token for its s-th expert; S = K + 1, or K
                without one more.
        """
        top_k, slots = self._indices_TK.shape[1], out_NSD.shape[1]
        weights_N1 = self._weights_TK.new_zeros(next_N1.shape)
        assignment = Assignment.of(
            torch.cat([self._indices_TK[tokens_N], next_N1], dim=1),
            torch.cat([self._weights_TK[tokens_N], weights_N1], dim=1),
            self._targets,
        )
        flat_XD = out_NSD.flatten(0, 1)
        for expert in range(len(self._experts)):
            if not assignment.count(expert):
                continue
            run = self._reader(expert)
            for piece in assignment.slices(expert, self._rows):
                here_N, places_N, gates_N = assignment.tokens[piece], assignment.places[piece], assignment.gates[piece]
                rows_N = tokens_N[here_N]
                output_ND, channels_NF = run(self._input(rows_N, expert))
                flat_XD.index_copy_(0, here_N * slots + places_N, output_ND.to(flat_XD.dtype))
                used_N = (places_N < top_k).nonzero().squeeze(1)
                yield Outputs(
                    expert,
                    rows_N[used_N],
                    places_N[used_N],
                    gates_N[used_N],
                    output_ND.index_select(0, used_N),
                    None if channels_NF is None else channels_NF.index_select(0, used_N),
                )

    def dense(self, tokens_N: Tensor, out_NED: Tensor) -> Iterator[Outputs]:
        """Run all experts on all of ``tokens_N``; fill ``out_NED``."""
        assignment = self.assignment(tokens_N)
        whole = len(tokens_N) == len(self._input_TD)
        input_ND = self._input_TD if whole else self._input_TD.index_select(0, tokens_N)
        for expert in range(len(self._experts)):
            run = self._reader(expert)
            first, stop = assignment.starts[expert : expert + 2]
            own_P = assignment.tokens[first:stop]
            kept: list[Tensor] = []
            for start in range(0, len(tokens_N), self._rows):
                some = slice(start, start + self._rows)
                x_ND = input_ND[some] if self._scores_TE is None else self._input(tokens_N[some], expert)
                output_ND, channels_NF = run(x_ND)
                out_NED[some, expert] = output_ND
                if channels_NF is not None:
                    here_N = own_P[(own_P >= start) & (own_P < some.stop)] - start
                    kept.append(channels_NF.index_select(0, here_N))
            channels_PF = torch.cat(kept) if kept else None
            for piece in assignment.slices(expert, self._rows):
                here_N = assignment.tokens[piece]
                output_ND = out_NED[:, expert].index_select(0, here_N).to(self._input_TD.dtype)
                places_N, gates_N = assignment.places[piece], assignment.gates[piece]
                channels_NF = None if channels_PF is None else channels_PF[piece.start - first : piece.stop - first]
                yield Outputs(expert, tokens_N[here_N], places_N, gates_N, output_ND, channels_NF)

    def _input(self, rows_N: Tensor, expert: int) -> Tensor:
        """Return what an expert takes in on some tokens."""
        x_ND = self._input_TD.index_select(0, rows_N)
        return x_ND if self._scores_TE is None else weighed(x_ND, self._scores_TE[rows_N, expert])

    def _reader(self, expert: int) -> Callable[[Tensor], tuple[Tensor, Tensor | None]]:
        """Read an expert and return it as a function to outputs and, if they are asked for, inputs of down."""
        network = self._experts.read(expert)
        matrices, biases = (network.gate_up_2FD, network.down_DF), network.biases

        def run_on(x_ND: Tensor, take: Callable[[Tensor], object] | None) -> Tensor:
            return gated_mlp(x_ND, *matrices, self._activation, take, biases)

        def run(x_ND: Tensor) -> tuple[Tensor, Tensor | None]:
            if not self._keep_channels:
                return run_on(x_ND, None), None
            taken: list[Tensor] = []
            output_ND = run_on(x_ND, taken.append)
            return output_ND, taken[0]

        return run
