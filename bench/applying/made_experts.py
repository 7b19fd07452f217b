"""Experts that were computed for one plan and serve for others that decide the same of them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.kernels.merging import ExpertMatrices

ROOM = 1 << 30
"""Bytes of matrices that are kept."""


class MadeExperts:
    """Keeps computed experts of one model and its statistics, those that were asked for last."""

    def __init__(self, room: int = ROOM) -> None:
        """Keep nothing yet; ``room`` is in bytes."""
        self.room, self.used = room, 0
        self._kept: OrderedDict[Hashable, ExpertMatrices] = OrderedDict()

    def made(self, key: Hashable, make: Callable[[], ExpertMatrices]) -> ExpertMatrices:
        """Return the expert under ``key``, which states all that it depends on; it is made where it is not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        found = make()
        self._kept[key] = found
        self.used += _bytes(found)
        while self.used > self.room and self._kept:
            _, oldest = self._kept.popitem(last=False)
            self.used -= _bytes(oldest)
        return found


def _bytes(expert: ExpertMatrices) -> int:
    return sum(matrix.nbytes for matrix in expert)
