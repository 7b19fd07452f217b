"""Headers of safetensors files: which tensors a file holds, and where the bytes of each lie. Nothing here knows torch."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from methods.framework.errors import CheckpointError
from methods.framework.inventory import BYTES_PER_ELEMENT

_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """Where the values of a tensor lie: a contiguous run of bytes in a file."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]

    def part(self, index: int, start: int, rows: int) -> Span:
        """Return ``[index, start:start + rows]`` of a 3-D tensor; it is contiguous.

        Args:
            index: along the first axis.
            start: first row of that matrix.
            rows: number of rows.
        """
        _, height, width = self.shape
        item = BYTES_PER_ELEMENT[self.dtype]
        offset = self.offset + (index * height + start) * width * item
        return Span(self.file, offset, rows * width * item, self.dtype, (rows, width))

    def runs(self, rows: Sequence[int] | None) -> Iterator[tuple[int, int]]:
        """Yield (offset, length) in bytes of the ``rows`` of the first axis, neighbours joined; None means all."""
        if rows is None:
            yield self.offset, self.nbytes
            return
        stride = self.nbytes // self.shape[0]
        first = 0
        for i in range(1, len(rows) + 1):
            if i == len(rows) or rows[i] != rows[i - 1] + 1:
                yield self.offset + rows[first] * stride, (i - first) * stride
                first = i


def read_header(path: Path) -> dict[str, Span]:
    """Return every tensor of a safetensors file, checked against the file's size.

    Raises:
        CheckpointError: not a safetensors file, or shorter or longer than its header says.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_LONGEST_HEADER, size - 8):
                raise CheckpointError(
                    f"{path} is truncated or not a safetensors file: it has {size} bytes; fetch it again"
                )
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not a safetensors file: its header is not JSON; fetch it again") from error
    header.pop("__metadata__", None)
    try:
        spans = {name: _span(path, 8 + length, name, entry) for name, entry in header.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has a malformed safetensors header ({error!r}); fetch it again") from error
    end = max((span.offset + span.nbytes for span in spans.values()), default=8 + length)
    if end != size:
        state = "truncated" if end > size else "longer than it should be"
        raise CheckpointError(
            f"{path} is {state}: its header promises {end} bytes, the file has {size}; fetch it again"
        )
    return spans


def _span(path: Path, base: int, name: str, entry: dict[str, list[int]]) -> Span:
    start, stop = entry["data_offsets"]
    dtype, shape = str(entry["dtype"]), tuple(entry["shape"])
    if dtype not in BYTES_PER_ELEMENT:
        known = ", ".join(BYTES_PER_ELEMENT)
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype}, which is not supported; supported: {known}")
    if start < 0 or stop - start != math.prod(shape) * BYTES_PER_ELEMENT[dtype]:
        raise CheckpointError(
            f"{path}: tensor {name} has {stop - start} bytes, which does not fit {dtype} {list(shape)}"
        )
    return Span(path, base + start, stop - start, dtype, shape)
