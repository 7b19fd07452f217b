"""Bytes of safetensors files: headers, spans, and reads straight into a tensor's memory.

Nothing is mapped into memory, since mapped pages would count as this process's memory. Reads are ``preadv`` into
buffers that are reused.
"""

from __future__ import annotations

import errno
import json
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from methods.framework.errors import CheckpointError
from methods.framework.inventory import BYTES_PER_ELEMENT

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CHUNK = 4 << 20
"""Size in bytes of reusable buffers."""
_LONGEST_HEADER = 100_000_000
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


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


class Files:
    """Open files of a checkpoint, each opened once, read from any thread."""

    def __init__(self) -> None:
        """Open nothing yet."""
        self._descriptors: dict[Path, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._descriptors)
        self._staging: torch.Tensor | None = None

    def descriptor(self, path: Path) -> int:
        """Return an open descriptor of ``path``."""
        with self._lock:
            if path not in self._descriptors:
                try:
                    self._descriptors[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
            return self._descriptors[path]

    def close(self) -> None:
        """Close all files; they open again when needed."""
        with self._lock:
            _close(self._descriptors)

    def fill(self, path: Path, offset: int, buffer: memoryview) -> None:
        """Read ``buffer`` full from ``offset``.

        Args:
            path: file.
            offset: first byte.
            buffer: memory of as many bytes as are wanted.

        Raises:
            CheckpointError: the file ends before.
        """
        descriptor, done = self.descriptor(path), 0
        while done < len(buffer):
            read = os.preadv(descriptor, [buffer[done:]], offset + done)
            if read == 0:
                raise CheckpointError(f"{path} ended at byte {offset + done}: it was cut while being read")
            done += read

    def chunks(self, span: Span, rows: Sequence[int] | None) -> Iterator[memoryview]:
        """Yield the bytes of ``span`` (or of its ``rows``) in order; a chunk is valid until the next is taken."""
        for offset, length in span.runs(rows):
            yield from self.run(span.file, offset, length)

    def run(self, path: Path, offset: int, length: int) -> Iterator[memoryview]:
        """Yield ``length`` bytes of a file from ``offset``; a chunk is valid until the next is taken.

        Args:
            path: file.
            offset: first byte.
            length: bytes.
        """
        with self._staged() as staging:
            buffer = _bytes(staging)
            for start in range(0, length, CHUNK):
                chunk = buffer[: min(CHUNK, length - start)]
                self.fill(path, offset + start, chunk)
                yield chunk

    def copy(self, span: Span, rows: Sequence[int] | None, descriptor: int) -> None:
        """Append ``span`` (or its ``rows``) to an open file: inside the kernel where the file system can.

        Args:
            span: bytes of a tensor.
            rows: indices along its first axis; None copies all.
            descriptor: of a file that is open for writing.
        """
        source = self.descriptor(span.file)
        for offset, length in span.runs(rows):
            done = 0
            try:
                while done < length and (
                    copied := os.copy_file_range(source, descriptor, length - done, offset + done)
                ):
                    done += copied
            except OSError as error:
                if error.errno not in _NO_KERNEL_COPY:
                    raise
            if done < length:
                for chunk in self.run(span.file, offset + done, length - done):
                    write_all(descriptor, chunk)

    def load(self, span: Span, rows: Sequence[int] | None, out: torch.Tensor) -> None:
        """Read ``span`` (or its ``rows``) into ``out``, converting where dtypes differ; shapes must agree.

        Args:
            span: bytes of a tensor.
            rows: indices along its first axis; None reads all.
            out: of the shape of what is read, on any device.
        """
        dtype = TORCH_DTYPES[span.dtype]
        if out.dtype == dtype and out.is_contiguous() and out.device.type == "cpu":
            buffer, done = _bytes(out), 0
            for offset, length in span.runs(rows):
                self.fill(span.file, offset, buffer[done : done + length])
                done += length
            return
        # A non-contiguous or foreign target is filled in one step from a contiguous twin in its own dtype.
        flat = out.view(-1) if out.is_contiguous() else torch.empty(out.numel(), dtype=out.dtype, device=out.device)
        item, done = dtype.itemsize, 0
        with self._staged() as staging:
            for offset, length in span.runs(rows):
                for start in range(0, length, CHUNK):
                    size = min(CHUNK, length - start)
                    self.fill(span.file, offset + start, _bytes(staging[:size]))
                    flat[done : done + size // item].copy_(staging[:size].view(dtype))
                    done += size // item
        if not out.is_contiguous():
            out.copy_(flat.view(out.shape))

    @contextmanager
    def _staged(self) -> Iterator[torch.Tensor]:
        """Lend the staging buffer; a second thread that asks meanwhile gets one of its own."""
        with self._lock:
            buffer, self._staging = self._staging, None
        if buffer is None:
            buffer = torch.empty(CHUNK, dtype=torch.uint8)
        try:
            yield buffer
        finally:
            self._staging = buffer


def _close(descriptors: dict[Path, int], close: Callable[[int], None] = os.close) -> None:
    # `close` is bound here because module globals are gone when a finaliser runs at the interpreter's end.
    while descriptors:
        close(descriptors.popitem()[1])


def write_all(descriptor: int, data: bytes | memoryview) -> None:
    """Write ``data`` whole to an open file."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _bytes(tensor: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous CPU tensor as bytes."""
    flat: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
