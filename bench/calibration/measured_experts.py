"""The routed experts of one layer while they are measured: no expert runs twice on a token, whatever is asked for.

Shape letters: T tokens of a block, N some of them, K experts per token, S = K + 1 candidates, E experts, J removals,
R router rows, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from bench.calibration.layers.expert_pass import ExpertPass, Outputs
from bench.calibration.layers.layer_router import LayerRouter
from bench.calibration.layers.weights import WeightReader
from bench.calibration.sums.layer_sums import LayerSums
from bench.calibration.sums.removal import changes_by_routing_again, needs_all_experts, next_expert, removals

_CHANGE_BYTES = 16 << 20
"""Bound on vectors of change that are in memory at once."""


class MeasuredExperts:
    """One block of tokens in one layer."""

    def __init__(
        self,
        router: LayerRouter,
        experts: ExpertPass,
        logits_TR: Tensor | None,
        output_TD: Tensor,
        sums: LayerSums,
        weights: WeightReader,
        output_bytes: int,
    ) -> None:
        """Take what is needed to run the experts.

        Args:
            router: of the layer.
            experts: its experts on the block.
            logits_TR: router logits of the block, where ``sums`` need them.
            output_TD: to which the weighted outputs are added.
            sums: what is measured.
            weights: lends the buffer for outputs.
            output_bytes: size of that buffer.
        """
        self._router, self._experts, self._logits_TR = router, experts, logits_TR
        self._output_TD, self._sums, self._weights, self._output_bytes = output_TD, sums, weights, output_bytes

    def run(self) -> None:
        """Run all experts on the sampled tokens, and the fewest that suffice on the rest."""
        if "inputs" in self._sums.shown:
            for expert, tokens_N, x_ND, gates_N in self._experts.inputs():
                self._sums.inputs(expert, tokens_N, x_ND, gates_N)
        rest_N = self._run_sampled()
        if rest_N is not None and not len(rest_N):
            return
        if "removals" not in self._sums.shown:
            add_weighted(self._output_TD, self._experts.routed(rest_N), self._sums)
            return
        if rest_N is None:
            rest_N = torch.arange(len(self._output_TD), device=self._output_TD.device)
        if needs_all_experts(self._router.semantics):
            for tokens_N in self._parts(rest_N, self._router.experts):
                self._dense(tokens_N)
        else:
            for tokens_N in self._parts(rest_N, min(self._router.top_k + 1, self._router.experts)):
                self._candidates(tokens_N)

    def _run_sampled(self) -> Tensor | None:
        """Run all experts on the sampled tokens, if asked for, and return the other tokens (None: all)."""
        sums = self._sums
        if "sampled_logits" in sums.shown:
            assert self._logits_TR is not None
            sums.sampled_logits(self._logits_TR[sums.sampled_N])
        if "sampled_outputs" not in sums.shown:
            return None
        for tokens_N in self._parts(sums.sampled_N, self._router.experts):
            sums.sampled_outputs(self._dense(tokens_N))
        others_T = torch.ones(len(self._output_TD), dtype=torch.bool, device=self._output_TD.device)
        return others_T.index_fill_(0, sums.sampled_N, False).nonzero().squeeze(1)

    def _parts(self, tokens_N: Tensor, slots: int) -> Iterable[Tensor]:
        """Return ``tokens_N`` in parts for which ``slots`` outputs each fit into the buffer."""
        if not len(tokens_N):
            return ()
        item = torch.promote_types(self._output_TD.dtype, torch.float32).itemsize
        token_bytes = slots * self._output_TD.shape[1] * item
        parts: tuple[Tensor, ...] = tokens_N.split(max(1, self._output_bytes // token_bytes))
        return parts

    def _buffer(self, tokens: int, slots: int) -> Tensor:
        return self._weights.buffer("outputs", (tokens, slots, self._output_TD.shape[1]))

    def _dense(self, tokens_N: Tensor) -> Tensor:
        """Run all experts on ``tokens_N`` and return their outputs, which the next call overwrites."""
        out_NED = self._buffer(len(tokens_N), self._router.experts)
        add_weighted(self._output_TD, self._experts.dense(tokens_N, out_NED), self._sums)
        if "removals" not in self._sums.shown:
            return out_NED
        if needs_all_experts(self._router.semantics):
            self._remove_by_routing_again(tokens_N, out_NED)
            return out_NED
        next_N1 = self._next(tokens_N)
        slots_NS = torch.cat([self._experts.indices(tokens_N), next_N1], dim=1)
        rows = max(1, _CHANGE_BYTES // (slots_NS.shape[1] * out_NED.shape[2] * out_NED.itemsize))
        for start in range(0, len(tokens_N), rows):
            some = slice(start, start + rows)
            index_NSD = slots_NS[some].unsqueeze(2).expand(-1, -1, out_NED.shape[2])
            self._remove(tokens_N[some], next_N1[some], out_NED[some].gather(1, index_NSD))
        return out_NED

    def _candidates(self, tokens_N: Tensor) -> None:
        """Run the experts that ``tokens_N`` choose or would choose next."""
        next_N1 = self._next(tokens_N)
        out_NSD = self._buffer(len(tokens_N), self._router.top_k + next_N1.shape[1])
        add_weighted(self._output_TD, self._experts.candidates(tokens_N, next_N1, out_NSD), self._sums)
        self._remove(tokens_N, next_N1, out_NSD)

    def _next(self, tokens_N: Tensor) -> Tensor:
        """Return the expert that each token would choose next, shape (N, 1), or (N, 0) where all are chosen."""
        assert self._logits_TR is not None
        router = self._router
        indices_NK = self._experts.indices(tokens_N)
        return next_expert(self._logits_TR[tokens_N], indices_NK, router.semantics, router.correction_R)

    def _remove(self, tokens_N: Tensor, next_N1: Tensor, out_NSD: Tensor) -> None:
        """Add the effect of removing each expert alone, from the outputs of the candidates."""
        assert self._logits_TR is not None
        indices_NK, logits_NE = self._experts.indices(tokens_N), self._logits_TR[tokens_N]
        slots_NS = torch.cat([indices_NK, next_N1], dim=1)
        effect = removals(logits_NE, slots_NS, self._router.top_k, self._router.semantics)
        squares_NE = torch.zeros_like(logits_NE, dtype=torch.float64)
        if effect.growth_NE is not None:
            norms_N1 = torch.linalg.vector_norm(self._output_TD[tokens_N].double(), dim=-1, keepdim=True)
            squares_NE = (effect.growth_NE * norms_N1).square_()
        squares_NE.scatter_(1, indices_NK, _squares(effect.change_NKS, out_NSD))
        self._sums.removed(tokens_N, squares_NE)

    def _remove_by_routing_again(self, tokens_N: Tensor, out_NED: Tensor) -> None:
        """Add the same from the outputs of all experts, whatever the router."""
        assert self._logits_TR is not None
        router, logits_NE = self._router, self._logits_TR[tokens_N]
        change_NEE = changes_by_routing_again(logits_NE, router.top_k, router.semantics, router.correction_R)
        self._sums.removed(tokens_N, _squares(change_NEE, out_NED))


def add_weighted(output_TD: Tensor, outputs: Iterable[Outputs], sums: LayerSums | None) -> None:
    """Add the weighted outputs of experts to ``output_TD``, after showing them to ``sums``.

    Args:
        output_TD: takes the sum.
        outputs: outputs of experts on tokens that are rows of ``output_TD``; they are overwritten with the weighted
            ones.
        sums: sees each before it is weighted; None for none.
    """
    for part in outputs:
        if sums is not None:
            sums.expert(part)
        y_ND = part.output_ND
        output_TD.index_add_(0, part.tokens_N, y_ND.mul_(part.gates_N.to(y_ND.dtype).unsqueeze(1)))


def _squares(change_NJS: Tensor, out_NSD: Tensor) -> Tensor:
    """Return |sum_s change_js f_s|^2 for every token and removal, shape (N, J), in float64.

    The vectors themselves are formed: a quadratic form in inner products would lose the small differences between experts
    that are nearly alike.
    """
    rows = max(1, _CHANGE_BYTES // (change_NJS.shape[1] * out_NSD.shape[2] * out_NSD.itemsize))
    squares = []
    for change_nJS, out_nSD in zip(change_NJS.split(rows), out_NSD.split(rows), strict=True):
        moved_nJD = torch.bmm(change_nJS.to(out_nSD.dtype), out_nSD)
        squares.append(torch.linalg.vecdot(moved_nJD, moved_nJD).double())
    return torch.cat(squares)
