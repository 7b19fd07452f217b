"""Statistics that are too big for memory: written row by row to a .npy file, handed out as memory maps.

Rows get their last value in order, with ``append``; until then they may hold sums, with ``write`` and ``read``. Plain writes
are used, since the pages of a map that is written count as memory of the process. Statistics are float32; float64 is for sums
that go when the layer is done.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable, Collection
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from blake3 import blake3

from bench.calibration.layers.weights import expert_width
from bench.store.atomic import open_scratch, remove_orphans, settle
from methods.framework import linears
from methods.framework.accumulator import Accumulator
from methods.framework.errors import StatsError
from methods.framework.inventory import Inventory
from methods.framework.stats import CATALOGUE

_BUFFER = 4 << 20
_REMEDY = (
    "free space, name another scratch or cache folder, or measure less: fewer sampled tokens, squares instead of Gram "
    "matrices"
)


class DiskArray:
    """An array that grows along its first axis; what is appended to a file with a name is hashed on its way there."""

    def __init__(
        self, label: str, shape: tuple[int, ...], file: IO[bytes], path: Path | None, dtype: str = "<f4"
    ) -> None:
        """Write the header of the array to ``file`` and take the room of all its rows.

        Args:
            label: what the array is, for messages.
            shape: in the end, when all rows are appended.
            file: open for writing, empty.
            path: its name; None for a file without one.
            dtype: of the entries, as numpy writes it.

        Raises:
            StatsError: there is no room.
        """
        self.path, self._label, self._shape, self._file = path, label, shape, file
        self._dtype = np.dtype(dtype)
        self._hasher = blake3()
        self._rows = 0
        header = BytesIO()
        fields = {"descr": dtype, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, fields)  # type: ignore[no-untyped-call] # numpy has no types for it
        self._offset = header.tell()
        try:
            os.posix_fallocate(file.fileno(), 0, self._offset + self._size)
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
        self._write(np.ascontiguousarray(rows, dtype=self._dtype).view(np.uint8).data)

    def write(self, row: int, values: np.ndarray[Any, Any]) -> None:
        """Keep ``values``, of the array's type, as row ``row`` until that row is appended.

        Raises:
            StatsError: the disk refuses.
        """
        assert row >= self._rows and values.shape == self._shape[1:]
        data = _bytes(np.ascontiguousarray(values, dtype=self._dtype))
        offset = self._offset + row * len(data)
        try:
            while data:
                written = os.pwrite(self._file.fileno(), data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            raise self._refused(error) from error

    def read(self, row: int, out: np.ndarray[Any, Any]) -> None:
        """Read row ``row``, zeros if nothing was written there, into ``out``, which is of the array's type.

        Raises:
            StatsError: the file was cut short.
        """
        assert out.shape == self._shape[1:] and out.dtype == self._dtype
        data = _bytes(out)
        offset = self._offset + row * len(data)
        while data:
            count = os.preadv(self._file.fileno(), [data], offset)
            if count == 0:
                raise StatsError(f"the file of {self._label} was cut short by another process; measure again")
            data, offset = data[count:], offset + count

    def finished(self) -> np.memmap[Any, Any]:
        """Return the whole array as a read-only map of the file.

        Raises:
            StatsError: rows are missing.
        """
        if self._rows != self._shape[0]:
            raise StatsError(f"{self._label}: {self._rows} of {self._shape[0]} rows were measured; this is a defect")
        return np.memmap(self._file, self._dtype, "r", self._offset, self._shape)

    @property
    def digest(self) -> str:
        """BLAKE3 digest of a file with a name."""
        return str(self._hasher.hexdigest())

    def settle(self, path: Path) -> None:
        """Give the file its name in one atomic step, once its bytes are on the disk."""
        assert self.path is not None
        settle(self._file, self.path, path)
        self.path = None

    def close(self) -> None:
        """Close the file, and remove it unless it was settled; maps of it stay valid."""
        self._file.close()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    @property
    def _size(self) -> int:
        """Bytes of its values."""
        return self._dtype.itemsize * math.prod(self._shape)

    def _write(self, data: bytes | memoryview) -> None:
        if self.path is not None:
            self._hasher.update(data)
        view = memoryview(data).cast("B")
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> StatsError:
        return StatsError(f"no room for {self._size / 2**30:.2f} GiB of {self._label}: {error.strerror}; {_REMEDY}")


def _bytes(values: np.ndarray[Any, Any]) -> memoryview:
    """Return the memory of a contiguous array."""
    return memoryview(values.reshape(-1).view(np.uint8).data)


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

    def require(self, size: int) -> None:
        """Make sure that there is room for ``size`` bytes, before anything is measured.

        Raises:
            StatsError: there is not.
        """
        folder = Path(tempfile.gettempdir()) if self._folder is None else self._folder
        while not folder.exists():
            folder = folder.parent
        if (free := shutil.disk_usage(folder).free) < size:
            raise StatsError(
                f"these statistics take {size / 2**30:.2f} GiB in {self._folder or folder}, where {free / 2**30:.2f} GiB are "
                f"free; {_REMEDY}"
            )

    def create(self, name: str, layer: int, shape: tuple[int, ...], dtype: str = "<f4") -> DiskArray:
        """Return a new array, empty so far.

        Args:
            name: of the statistic.
            layer: index of its decoder layer.
            shape: of the array in the end, when all rows are appended.
            dtype: of its entries, as numpy writes it.

        Raises:
            StatsError: the folder cannot be written to, or has no room.
        """
        label = f"layer {layer}: {name}"
        try:
            file, path = self._open()
        except OSError as error:
            where = self._folder or tempfile.gettempdir()
            raise StatsError(f"{label}: cannot write to {where}: {error.strerror}; name another folder") from error
        try:
            array = DiskArray(label, shape, file, path, dtype)
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
        remove_orphans(self._folder)
        return open_scratch(self._folder)

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


def disk_bytes(inventory: Inventory, needs: Collection[str], sampled: int) -> int:
    """Return the bytes of statistics that are kept in files, and of the largest sums of one layer that lie there meanwhile.

    Args:
        inventory: the model.
        needs: names of the statistics that are measured.
        sampled: S, tokens that stand for all.
    """
    each = layer_bytes(inventory, needs, sampled)
    return sum(kept for kept, _ in each) + max((passing for _, passing in each), default=0)


def layer_bytes(inventory: Inventory, needs: Collection[str], sampled: int) -> list[tuple[int, int]]:
    """Return, for each decoder layer, the bytes of statistics that are kept in files, and of sums that lie there meanwhile.

    Args:
        inventory: the model.
        needs: names of the statistics that are measured.
        sampled: S, tokens that stand for all.
    """
    found = []
    kinds = {CATALOGUE.kind(name) for name in needs}
    specs = [CATALOGUE[name] for name in needs if CATALOGUE[name].on_disk]
    for layer in inventory.layers:
        passing = 0
        sizes = {"S": sampled, "D": inventory.hidden, "M": 3}
        sizes |= {"Q": linears.sizes(layer, "attention")[1], "V": linears.sizes(layer, "network")[1]}
        if layer.mlp == "moe":
            sizes |= {"E": layer.experts, "F": expert_width(layer)}
            passing = sum(kind.passing_bytes(sizes) for kind in kinds if issubclass(kind, Accumulator))
        here = (spec for spec in specs if spec.defined_in(layer))
        found.append((sum(4 * math.prod(sizes[letter] for letter in spec.dims) for spec in here), passing))
    return found


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
