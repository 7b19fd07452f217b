"""Cache of statistics: one safetensors file per measurement, keyed by everything that can change its values.

The key holds the digests of the checkpoint and of the corpus's tokens, all settings, library versions and the source text
of the code that measures. So a stale hit cannot happen; what is asked for may be a subset of what a file holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from bench.store import digest_of
from methods.errors import StatsError
from methods.stats import CATALOGUE, Array, Stats

SCHEMA = 1


@cache
def code_digest() -> str:
    """Return the digest of the source files that decide what a statistic's value is."""
    import methods.kernels
    import methods.stats

    here = Path(__file__).parent
    files = [
        *here.glob("*.py"),
        *Path(methods.kernels.__file__).parent.glob("*.py"),
        Path(methods.stats.__file__),
        here.parent / "calibrate.py",
    ]
    return digest_of(
        {f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    )


class StatsCache:
    """Measurements with one key in one folder."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Use ``folder`` for the measurement that ``key`` (JSON values) describes."""
        self._folder = folder
        self._key = digest_of({"schema": SCHEMA, "code": code_digest(), **key})

    def load(self, needs: Collection[str]) -> Stats | None:
        """Return a measurement that holds all of ``needs``, cut down to them; damaged files are passed over."""
        for path in sorted(self._folder.glob(f"{self._key}.*.safetensors")):
            stats = _read(path, self._key)
            if stats is not None and set(needs) <= set(stats.values):
                return stats.only(needs)
        return None

    def save(self, stats: Stats) -> Path:
        """Write ``stats`` in one atomic step and return the path.

        Raises:
            StatsError: the disk refuses; nothing that looks complete is left.
        """
        from safetensors.numpy import save

        arrays = {
            f"{name}/{index}": np.ascontiguousarray(value)
            for name, values in stats.values.items()
            for index, value in enumerate(values)
            if value is not None
        }
        meta = {
            "key": self._key,
            "tokens": stats.tokens,
            "meta": dict(stats.meta),
            "length": {name: len(values) for name, values in stats.values.items()},
        }
        text = json.dumps(meta, sort_keys=True)
        header = {"moebench": text, "sha256": _checksum(text, arrays)}
        path = self._folder / f"{self._key}.{digest_of(sorted(stats.values))[:16]}.safetensors"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor, partial = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".partial")
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(save(arrays, header))
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(partial, path)
            except OSError:
                os.unlink(partial)
                raise
        except OSError as error:
            raise StatsError(
                f"cannot write {path}: {error.strerror}; free space or name another cache folder"
            ) from error
        return path


def _checksum(meta: str, arrays: Mapping[str, Array]) -> str:
    hasher = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        hasher.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        hasher.update(arrays[name].tobytes())
    return hasher.hexdigest()


def _read(path: Path, key: str) -> Stats | None:
    """Return the content of ``path``, or None where it is damaged or was written for another key."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a method, not a mapping
        meta = json.loads(header["moebench"])
        if header["sha256"] != _checksum(header["moebench"], arrays) or meta["key"] != key:
            return None
        values = {
            name: tuple(arrays.get(f"{name}/{index}") for index in range(length))
            for name, length in meta["length"].items()
        }
        if not values.keys() <= CATALOGUE.keys():
            return None
        return Stats(values, meta["tokens"], meta["meta"])
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
