"""Headers of safetensors files: which tensors a file holds, and where the bytes of each lie. Nothing here knows torch."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.families.layout import Cut
from methods.framework.errors import CheckpointError
from methods.framework.inventory import BYTES_PER_ELEMENT
from methods.framework.outside import an_object, open_regular, parse_json

_LONGEST_HEADER = 100_000_000


@dataclass(frozen=True, slots=True)
class Span:
    """Where the values of a tensor lie: a contiguous run of bytes in a file, or what ``cut`` takes of such a run."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    shape: tuple[int, ...]
    cut: Cut | None = None

    def of_expert(self, index: int, cut: Cut) -> Span:
        """Return the part ``cut`` of ``[index]``, of a tensor that holds all experts of a layer."""
        if cut.is_run:
            rows = self.shape[1] // cut.parts
            return self.part(index, cut.part * rows, rows)
        size = self.nbytes // self.shape[0]
        return Span(self.file, self.offset + index * size, size, self.dtype, self.shape[1:], cut)

    def part(self, index: int, start: int, rows: int) -> Span:
        """Return ``[index, start:start + rows]`` of a tensor of two axes or more; it is contiguous.

        Args:
            index: along the first axis.
            start: first row of that matrix.
            rows: number of rows.
        """
        _, height, *columns = self.shape
        item, width = BYTES_PER_ELEMENT[self.dtype], math.prod(columns)
        offset = self.offset + (index * height + start) * width * item
        return Span(self.file, offset, rows * width * item, self.dtype, (rows, *columns))

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
        with os.fdopen(open_regular(path, CheckpointError), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(_LONGEST_HEADER, size - 8):
                raise CheckpointError(
                    f"{path} is truncated or not a safetensors file: it has {size} bytes; fetch it again"
                )
            text = file.read(length)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    return header_of(path, size, text)


def header_of(path: Path, size: int, text: bytes) -> dict[str, Span]:
    """Return every tensor that a header states, checked against the file's size.

    Args:
        path: where the file lies, or will lie once it is fetched.
        size: bytes of the whole file.
        text: the header, without its length before it.

    Raises:
        CheckpointError: malformed, or the file is shorter or longer than it says.
    """
    remedy, length = "fetch it again", len(text)
    what = f"the header of {path}"
    header = an_object(parse_json(text, what, CheckpointError, remedy), what, CheckpointError, remedy)
    header.pop("__metadata__", None)
    spans = {name: _span(path, 8 + length, name, entry) for name, entry in header.items()}
    _check_order(path, 8 + length, spans)
    end = max((span.offset + span.nbytes for span in spans.values()), default=8 + length)
    if end != size:
        state = "truncated" if end > size else "longer than it should be"
        raise CheckpointError(
            f"{path} is {state}: its header promises {end} bytes, the file has {size}; fetch it again"
        )
    return spans


def _check_order(path: Path, start: int, spans: Mapping[str, Span]) -> None:
    """Refuse tensors that share bytes, and bytes that belong to none; the format allows neither."""
    place = start
    for name, span in sorted(spans.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if span.offset != place:
            fault = "overlaps the tensor before it" if span.offset < place else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {name} {fault} (bytes {span.offset} and {place}); fetch it again")
        place = span.offset + span.nbytes


def _whole(values: Any, count: int | None = None) -> bool:
    """Return whether ``values`` is a list of whole numbers, none negative, and of ``count`` of them."""
    whole = isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)
    return whole and count in (None, len(values))


def _span(path: Path, base: int, name: str, entry: Any) -> Span:
    stated = isinstance(entry, dict) and _whole(entry.get("data_offsets"), 2) and _whole(entry.get("shape"))
    if not stated or not isinstance(entry.get("dtype"), str):
        raise CheckpointError(
            f"{path} has a malformed safetensors header: tensor {name} is {str(entry)[:200]}; fetch it again"
        )
    start, stop = entry["data_offsets"]
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    if dtype not in BYTES_PER_ELEMENT:
        known = ", ".join(BYTES_PER_ELEMENT)
        raise CheckpointError(f"{path}: tensor {name} has dtype {dtype}, which is not supported; supported: {known}")
    if stop - start != math.prod(shape) * BYTES_PER_ELEMENT[dtype]:
        raise CheckpointError(
            f"{path}: tensor {name} has {stop - start} bytes, which does not fit {dtype} {list(shape)}"
        )
    return Span(path, base + start, stop - start, dtype, shape)
