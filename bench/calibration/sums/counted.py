"""Tokens that statistics count, where these are not all: the pass runs every token, and sums are shown some of them.

Shape letters: T tokens of a block, N some of them, C those of the block that count.
"""

from __future__ import annotations

import torch
from torch import Tensor


class Counted:
    """Which tokens of the corpus count, in the order of the pass."""

    def __init__(self, marks: Tensor) -> None:
        """Take one truth value for each token."""
        self._marks = marks
        self._before = torch.cat([torch.zeros(1, dtype=torch.int64), marks.cpu().long().cumsum(0)])

    def before(self, token: int) -> int:
        """Return how many tokens before number ``token`` count."""
        return int(self._before[token])

    def rows(self, start: int, stop: int) -> Tensor:
        """Return those of ``start:stop`` that count, as offsets from ``start``, ascending."""
        return self._marks[start:stop].nonzero().squeeze(1)


class CountedRows:
    """Those of one block: what is shown of it is cut down to them, and rows of the block become places among them."""

    def __init__(self, counted: Counted, start: int, stop: int) -> None:
        """Choose them.

        Args:
            counted: tokens that count.
            start: first token of the block.
            stop: token after its last.
        """
        self.rows_C = counted.rows(start, stop)
        self._place_T = self.rows_C.new_full((stop - start,), -1)
        self._place_T[self.rows_C] = torch.arange(len(self.rows_C), device=self.rows_C.device)

    def of_block(self, *shown: Tensor) -> tuple[Tensor, ...]:
        """Return the counted rows of tensors that have a row for each token of the block."""
        return tuple(one[self.rows_C] for one in shown)

    def of_piece(self, start: int, *shown: Tensor) -> tuple[Tensor, ...]:
        """Return the counted rows of tensors that have a row for each token of the block from ``start`` on."""
        place_N = self._place_T[start : start + len(shown[0])]
        return tuple(one[place_N >= 0] for one in shown)

    def of_some(self, tokens_N: Tensor, *shown: Tensor) -> tuple[Tensor, ...]:
        """Return the places of those of ``tokens_N`` that count, and the rows of ``shown`` that belong to them."""
        place_N = self._place_T[tokens_N]
        return place_N[place_N >= 0], *(one[place_N >= 0] for one in shown)
