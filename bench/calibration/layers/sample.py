"""Which tokens stand for all: evenly spaced over the corpus, in the order of the pass."""

from __future__ import annotations

import torch
from torch import Tensor


class Sample:
    """At most ``limit`` of ``total`` things, evenly spaced."""

    def __init__(self, total: int, limit: int) -> None:
        """Choose them."""
        self.count = min(total, limit)
        self._chosen = torch.arange(self.count) * total // max(self.count, 1)

    def within(self, start: int, stop: int) -> tuple[int, Tensor]:
        """Return those in ``start:stop``: how many were chosen before, and their offsets from ``start``, ascending."""
        first, last = torch.searchsorted(self._chosen, torch.tensor([start, stop])).tolist()
        return first, self._chosen[first:last] - start
