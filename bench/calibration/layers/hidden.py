"""Hidden states of all tokens between two decoder layers: in memory, or above a bound in a scratch file.

Sequences lie one behind the other, sorted by length and never padded. They are processed in blocks of whole sequences, so
that memory holds one block however long the corpus is. Shape letters: T tokens, D hidden size.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from methods.framework.errors import StatsError


class ScratchRows:
    """A matrix in an anonymous file, read and written by rows.

    Plain reads and writes are used and no memory map, because the pages of a map count as memory of the process.
    """

    def __init__(
        self, rows: int, width: int, dtype: torch.dtype, folder: Path | None, content: str = "hidden states"
    ) -> None:
        """Create the file, which vanishes when it is closed or on a crash.

        Args:
            rows: number of rows, for all of which room is taken at once.
            width: entries of a row.
            dtype: in which they are stored.
            folder: where the file lies; None takes the system's temporary folder.
            content: what the rows are, for messages.

        Raises:
            StatsError: there is no room.
        """
        self._width, self._dtype = width, dtype
        self._row_bytes = width * dtype.itemsize
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as this object
        try:
            os.posix_fallocate(self._file.fileno(), 0, max(1, rows * self._row_bytes))
        except OSError as error:
            raise StatsError(
                f"no room for {rows * self._row_bytes / 2**30:.1f} GiB of {content} in {folder or tempfile.gettempdir()}: "
                f"{error.strerror}; free space, name another scratch folder, or use fewer tokens"
            ) from error

    def write(self, start: int, rows_ND: Tensor) -> None:
        """Write rows from index ``start`` on."""
        data = _bytes(rows_ND.detach().to("cpu", self._dtype).contiguous())
        offset = start * self._row_bytes
        while data:
            written = os.pwrite(self._file.fileno(), data, offset)
            data, offset = data[written:], offset + written

    def read(self, start: int, stop: int) -> Tensor:
        """Return rows ``start:stop`` on the CPU."""
        rows_ND = torch.empty(stop - start, self._width, dtype=self._dtype)
        data = _bytes(rows_ND)
        offset = start * self._row_bytes
        while data:
            count = os.preadv(self._file.fileno(), [data], offset)
            if count == 0:
                raise StatsError("the scratch file of hidden states was cut short by another process; measure again")
            data, offset = data[count:], offset + count
        return rows_ND


def _bytes(rows_ND: Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor."""
    flat: Any = rows_ND.view(torch.uint8).reshape(-1).numpy()
    return memoryview(flat)


@dataclass(frozen=True, slots=True)
class Batch:
    """``count`` sequences of ``length`` tokens that begin at token ``start``."""

    start: int
    count: int
    length: int

    @property
    def stop(self) -> int:
        """Token after the last."""
        return self.start + self.count * self.length


@dataclass(frozen=True, slots=True)
class Block:
    """Tokens ``start:stop`` that are processed together: attention by batch, experts over all of them."""

    start: int
    stop: int
    batches: tuple[Batch, ...]


def blocks(lengths: Sequence[int], block_tokens: int, batch_tokens: int) -> list[Block]:
    """Cut sequences of these (ascending) lengths into blocks and batches of equal length, of at least one sequence each.

    Args:
        lengths: tokens of each sequence, ascending.
        block_tokens: most tokens of a block, unless a single sequence has more.
        batch_tokens: most tokens of a batch, unless a single sequence has more.
    """
    result: list[Block] = []
    batches: list[Batch] = []
    start = block_start = 0
    for length in lengths:
        if batches and start + length - block_start > block_tokens:
            result.append(Block(block_start, start, tuple(batches)))
            batches, block_start = [], start
        last = batches[-1] if batches else None
        if last and last.length == length and (last.count + 1) * length <= batch_tokens:
            batches[-1] = Batch(last.start, last.count + 1, length)
        else:
            batches.append(Batch(start, 1, length))
        start += length
    return [*result, Block(block_start, start, tuple(batches))]


class HiddenStates:
    """The residual stream of all tokens; one block of it is in hand at a time."""

    def __init__(
        self,
        plan: Sequence[Block],
        hidden: int,
        device: torch.device,
        dtype: torch.dtype,
        folder: Path | None,
        kept: torch.dtype | None = None,
    ):
        """Make room for the states of all tokens.

        Args:
            plan: the blocks; a single one is held in memory, several in a scratch file.
            hidden: D.
            device: where the block in hand is.
            dtype: of the states in hand.
            folder: of the scratch file; None takes the system's temporary folder.
            kept: type in which they are kept between two layers; None for ``dtype``.

        Raises:
            StatsError: there is no room for the scratch file.
        """
        self._device, self._dtype = device, dtype
        kept = dtype if kept is None else kept
        self._memory: Tensor | None = None
        self._scratch: ScratchRows | None = None
        if len(plan) == 1:
            self._memory = torch.empty(plan[0].stop, hidden, device=device, dtype=kept)
        else:
            self._scratch = ScratchRows(plan[-1].stop, hidden, kept, folder)

    def load(self, block: Block) -> Tensor:
        """Return the states of ``block``, shape (T, D); change them freely, they count once stored."""
        if self._scratch is not None:
            return self._scratch.read(block.start, block.stop).to(self._device, self._dtype)
        assert self._memory is not None
        return self._memory.to(self._dtype)

    def store(self, block: Block, hidden_TD: Tensor) -> None:
        """Keep new states of ``block``."""
        if self._scratch is not None:
            self._scratch.write(block.start, hidden_TD)
        elif hidden_TD is not self._memory:
            assert self._memory is not None
            self._memory.copy_(hidden_TD)
