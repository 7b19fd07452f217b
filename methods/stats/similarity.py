"""How alike experts are, by their weights and by what they make of the sampled tokens.

Shape letters: N some sampled tokens, E routed experts, D hidden size; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.deferred import torch
from methods.framework.place import Experts, LayerPlace, Rows
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor


class WeightCka(Accumulator):
    """Similarity of experts by their weights."""

    specs = (
        StatSpec(
            "weight_cka",
            ("E", "E"),
            "moe",
            "weights",
            "linear CKA of the experts' weights [W_gate^T | W_up^T | W_down], hidden dimensions as samples",
            "1",
            of_whole_experts=True,
        ),
    )

    def finished(self, seen: Seen) -> dict[str, Array]:
        from methods.kernels.cka import linear_cka

        place = self.place
        return {"weight_cka": linear_cka(_neurons(seen.experts), len(seen.experts), place.hidden, place.rows)}


class OutputCka(Accumulator):
    """Similarity of experts by how their outputs vary; the outputs lie on the disk, expert by expert."""

    specs = (
        StatSpec(
            "output_cka",
            ("E", "E"),
            "moe",
            "sampled",
            "linear CKA of f_i(X) and f_j(X), X the sampled tokens",
            "1",
            compares_tokens=True,
        ),
    )
    shown = frozenset({"sampled_outputs"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._rows: Rows | None = None
        self._seen = 0

    def sampled_outputs(self, outputs_NED: Tensor) -> None:
        tokens, experts, hidden = outputs_NED.shape
        first, chosen_N = self.place.compared.within(self._seen, self._seen + tokens)
        self._seen += tokens
        if not len(chosen_N):
            return
        count = self.place.compared.count
        if self._rows is None:
            self._rows = self.place.rows(experts * count, hidden, outputs_NED.dtype, "expert outputs")
        for expert in range(experts):
            self._rows.write(expert * count + first, outputs_NED[chosen_N.to(outputs_NED.device), expert])

    def _features(self) -> Iterator[Sequence[Tensor]]:
        count = self.place.compared.count
        assert self._rows is not None
        for expert in range(self.place.layer.experts):
            yield [self._rows.read(expert * count, (expert + 1) * count).to(self.place.device)]

    def finished(self, seen: Seen) -> dict[str, Array]:
        from methods.kernels.cka import linear_cka

        place = self.place
        value = linear_cka(self._features(), place.layer.experts, place.compared.count, place.rows)
        self._rows = None
        return {"output_cka": value}


def _neurons(experts: Experts) -> Iterator[Sequence[Tensor]]:
    """Yield the matrices of every expert with hidden dimensions as rows and neurons as columns."""
    for expert in range(len(experts)):
        network = experts.read(expert)
        wide = torch.promote_types(network.down_DF.dtype, torch.float32)
        yield network.gate_up_2FD.to(wide).T, network.down_DF.to(wide)
