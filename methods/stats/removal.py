"""How much the routed output of a layer changes when one expert alone is removed.

Shape letters: N some tokens, W windows of a block, E routed experts; see ``methods.framework.stat_spec``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from methods.framework.accumulator import Accumulator, Seen
from methods.framework.place import LayerPlace
from methods.framework.stat_spec import Array, StatSpec

if TYPE_CHECKING:
    from torch import Tensor


class RemovalLoss(Accumulator):
    """Squared changes by window, whose roots are added up."""

    specs = (
        StatSpec(
            "removal_loss",
            ("E",),
            "moe",
            "routed",
            "sum over windows of the Frobenius norm of the change of the routed output when expert j alone is removed",
            "output tokens^0.5",
            of_rows=True,
        ),
    )
    shown = frozenset({"removals"})

    def __init__(self, needs: frozenset[str], place: LayerPlace) -> None:
        super().__init__(needs, place)
        self._sum_E = place.zeros(place.layer.experts)

    def begin(self, window_T: Tensor, windows: int) -> None:
        self._window_T = window_T
        self._squares_WE = self.place.zeros(windows, self.place.layer.experts)

    def removed(self, tokens_N: Tensor, squares_NE: Tensor) -> None:
        self._squares_WE.index_add_(0, self._window_T[tokens_N], squares_NE)

    def end(self) -> None:
        self._sum_E += self._squares_WE.sqrt().sum(dim=0)

    def finished(self, seen: Seen) -> dict[str, Array]:
        return {"removal_loss": self._sum_E.cpu().numpy()}
