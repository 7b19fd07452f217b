"""Statistics that are too big for memory: written row by row to a .npy file, handed out as memory maps.

They are written with plain writes, since the pages of a map that is written count as memory of the process.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from blake3 import blake3

from methods.errors import StatsError

_BUFFER = 4 << 20


class DiskArray:
    """A float32 array that grows along its first axis; its bytes are hashed on their way to the file."""

    def __init__(self, label: str, shape: tuple[int, ...], file: IO[bytes], path: Path | None) -> None:
        """Write the header of an array of ``shape`` to ``file``, whose name is ``path`` if it has one."""
        self.path, self._label, self._shape, self._file = path, label, shape, file
        self._hasher = blake3()
        self._rows = 0
        header = BytesIO()
        fields = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)  # type: ignore[no-untyped-call] # numpy has no types for it
        self._offset = header.tell()
        try:
            os.posix_fallocate(file.fileno(), 0, self._offset + 4 * math.prod(shape))
        except OSError as error:
            raise self._refused(error) from error
        self._write(header.getvalue())

    def append(self, rows: np.ndarray[Any, Any]) -> None:
        """Add rows.

        Raises:
            StatsError: a value is not finite, or the disk refuses.
        """
        if not np.isfinite(rows).all():
            raise StatsError(
                f"{self._label} is not finite; the weights hold inf or nan, or dtype overflows: use float32"
            )
        self._rows += len(rows)
        self._write(np.ascontiguousarray(rows, dtype="<f4").view(np.uint8).data)

    def finished(self) -> np.memmap[Any, Any]:
        """Return the whole array as a read-only map of the file.

        Raises:
            StatsError: rows are missing.
        """
        if self._rows != self._shape[0]:
            raise StatsError(f"{self._label}: {self._rows} of {self._shape[0]} tokens were measured; this is a defect")
        return np.memmap(self._file, "<f4", "r", self._offset, self._shape)

    @property
    def digest(self) -> str:
        """BLAKE3 digest of the file."""
        return str(self._hasher.hexdigest())

    def settle(self, path: Path) -> None:
        """Give the file its name in one atomic step, once its bytes are on the disk."""
        assert self.path is not None
        os.fsync(self._file.fileno())
        os.replace(self.path, path)
        self.path = None

    def close(self) -> None:
        """Close the file, and remove it unless it was settled; maps of it stay valid."""
        self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _write(self, data: bytes | memoryview) -> None:
        self._hasher.update(data)
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StatsError:
        size = 4 * math.prod(self._shape) / 2**30
        return StatsError(
            f"no room for {size:.2f} GiB of {self._label}: {error.strerror}; free space, name another scratch or cache "
            "folder, or use fewer sampled tokens"
        )


class DiskArrays:
    """The disk arrays of one measurement, by statistic and layer."""

    def __init__(self, folder: Path | None, *, named: bool) -> None:
        """Create them in ``folder`` (None: the system's temporary folder).

        Args:
            folder: where the files are.
            named: whether they may get a name with ``settle``; others vanish with their maps, also on a crash.
        """
        self._folder, self._named = folder, named
        self._arrays: dict[tuple[str, int], DiskArray] = {}

    def create(self, name: str, layer: int, shape: tuple[int, ...]) -> DiskArray:
        """Return a new array for statistic ``name`` of decoder layer ``layer``."""
        label = f"layer {layer}: {name}"
        try:
            file, path = self._open()
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            raise StatsError(f"{label}: cannot write to {where}: {error.strerror}; name another folder") from error
        try:
            array = DiskArray(label, shape, file, path)
        except BaseException:
            file.close()
            if path is not None:
                path.unlink(missing_ok=True)
            raise
        self._arrays[name, layer] = array
        return array

    def _open(self) -> tuple[IO[bytes], Path | None]:
        if not self._named:
            return tempfile.TemporaryFile(dir=self._folder, buffering=0), None
        assert self._folder is not None
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor, path = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".partial")
        return os.fdopen(descriptor, "r+b", buffering=0), Path(path)

    def settle(self, path_of: Callable[[str, int, str], Path]) -> dict[str, dict[str, str]]:
        """Name every array as ``path_of`` (statistic, layer, digest) says; return file name and digest of each."""
        settled = {}
        for (name, layer), array in self._arrays.items():
            path = path_of(name, layer, array.digest)
            array.settle(path)
            settled[f"{name}/{layer}"] = {"file": path.name, "blake3": array.digest}
        return settled

    def close(self) -> None:
        """Close all files and remove those without a lasting name."""
        for array in self._arrays.values():
            array.close()
        self._arrays.clear()


def recalled(path: Path, digest: str) -> np.memmap[Any, Any] | None:
    """Return the array in ``path`` as a read-only map, or None where its bytes are not those of ``digest``."""
    hasher, buffer = blake3(), bytearray(_BUFFER)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            hasher.update(view[:size])
    if hasher.hexdigest() != digest:
        return None
    array: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array
