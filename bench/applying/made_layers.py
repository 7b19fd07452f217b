"""Experts that were computed for one layer of a resident model, kept for the next plan that asks for the same."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.framework.layer_plan import LayerPlan
from methods.kernels.merging import ExpertMatrices

if TYPE_CHECKING:
    from torch import Tensor

ROOM = 1 << 30
"""Bytes that are kept at most, where nothing else is said."""


@dataclass(frozen=True, slots=True)
class MadeLayer:
    """What a plan makes of the experts of one layer.

    Args:
        experts: number and matrices of each expert that is overwritten.
        scale_D: what their inputs are scaled by; None where they are not.
    """

    experts: tuple[tuple[int, ExpertMatrices], ...]
    scale_D: Tensor | None

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(matrix.nbytes for _, matrices in self.experts for matrix in matrices)


class MadeLayers:
    """The layers that were made last, of one model and one set of statistics, within a number of bytes."""

    def __init__(self, room: int = ROOM) -> None:
        """Keep ``room`` bytes; a layer that is larger by itself is not kept."""
        self._room, self._held = room, 0
        self._made: OrderedDict[tuple[int, LayerPlan], MadeLayer] = OrderedDict()

    def get(self, layer: int, plan: LayerPlan) -> MadeLayer | None:
        """Return what was made of a layer by ``plan``, where it is still kept."""
        key = (layer, plan)
        if key in self._made:
            self._made.move_to_end(key)
        return self._made.get(key)

    def put(self, layer: int, plan: LayerPlan, made: MadeLayer) -> None:
        """Keep what was made of a layer, and give up what was asked for longest ago where there is no room.

        Args:
            layer: its index.
            plan: that made it.
            made: the result.
        """
        if made.nbytes > self._room:
            return
        while self._held + made.nbytes > self._room:
            _, oldest = self._made.popitem(last=False)
            self._held -= oldest.nbytes
        self._made[layer, plan] = made
        self._held += made.nbytes
