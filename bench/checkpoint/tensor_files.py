"""Bytes of safetensors files, read straight into a tensor's memory.

Nothing is mapped into memory, since mapped pages would count as this process's memory. Reads are ``preadv`` into
buffers that are reused.
"""

from __future__ import annotations

import errno
import os
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bench.checkpoint.headers import Span
from methods.framework.errors import CheckpointError
from methods.framework.outside import open_regular

TORCH_DTYPES: dict[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
CHUNK = 4 << 20
"""Size in bytes of reusable buffers."""
_NO_KERNEL_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


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
                self._descriptors[path] = open_regular(path, CheckpointError)
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
        if span.cut is not None:
            yield _bytes(self.read(span, rows))
            return
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
        if span.cut is not None:
            write_all(descriptor, _bytes(self.read(span, rows)))
            return
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

    def read(self, span: Span, rows: Sequence[int] | None) -> torch.Tensor:
        """Return ``span`` (or its ``rows``) as a tensor in the dtype of the file."""
        if span.cut is not None:
            whole = torch.empty(span.shape, dtype=TORCH_DTYPES[span.dtype])
            self.load(replace(span, cut=None), None, whole)
            part: torch.Tensor = span.cut.of(whole)
            return (part if rows is None else part[list(rows)]).contiguous()
        shape = span.shape if rows is None else (len(rows), *span.shape[1:])
        out = torch.empty(shape, dtype=TORCH_DTYPES[span.dtype])
        self.load(span, rows, out)
        return out

    def load(self, span: Span, rows: Sequence[int] | None, out: torch.Tensor) -> None:
        """Read ``span`` (or its ``rows``) into ``out``, converting where dtypes differ; shapes must agree.

        Args:
            span: bytes of a tensor.
            rows: indices along its first axis; None reads all.
            out: of the shape of what is read, on any device.
        """
        if span.cut is not None:
            out.copy_(self.read(span, rows))
            return
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
