"""Cache of statistics: one safetensors file per measurement, keyed by everything that can change its values.

The key holds the digests of the checkpoint and of the corpus's tokens, all settings, library versions and the source text
of the rooms that read and measure; a file holds that of each of its statistics, with the kernels that it uses. So a stale hit
cannot happen, and work on one statistic keeps the others; what is asked for may be a subset of what a file holds.

Statistics that are kept token by token lie beside it, one .npy file for each layer, named after its content; they are
handed out as memory maps and never read whole.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bench.calibration.code_digest import code_digest, statistic_digest
from bench.calibration.sums.disk_array import DiskArrays, recalled
from bench.store.atomic import OTHER_CACHE, SUFFIX, atomic_file, explained
from bench.store.store import digest_of
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import StatsError
from methods.framework.stat_spec import Array
from methods.framework.stats import Stats

SCHEMA = 3
_ABANDONED = 7 * 24 * 3600
"""Seconds after which the unfinished file of a process that was killed is removed."""


def code_of(names: Collection[str]) -> dict[str, str]:
    """Return the digest of the code that measures each statistic."""
    return {name: statistic_digest(name) for name in sorted(names)}


class StatsCache:
    """Measurements with one key in one folder."""

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        """Use ``folder`` for the measurement that ``key`` (JSON values) describes."""
        self._folder = folder
        self._key = digest_of({"schema": SCHEMA, "code": code_digest(), **key})

    def load(self, needs: Collection[str], sampling: Mapping[str, int]) -> Stats | None:
        """Return a measurement that holds all of ``needs``, cut down to them; damaged files are passed over.

        Args:
            needs: names of statistics.
            sampling: settings that only some statistics depend on: those that matter for ``needs``.
        """
        for path in sorted(self._folder.glob(f"{self._key}.*.safetensors")):
            stats = _read(path, self._key, needs, sampling)
            if stats is not None:
                return stats
        return None

    def save(self, stats: Stats, arrays: DiskArrays) -> Path:
        """Write ``stats`` in one atomic step and return the path.

        Args:
            stats: a measurement.
            arrays: those of its statistics that have files already, in this folder; they get their lasting names.

        Raises:
            StatsError: the disk refuses; nothing that looks complete is left.
        """
        from safetensors.numpy import save

        path = self._folder / f"{self._key}.{digest_of([sorted(stats.values), dict(stats.meta)])[:16]}.safetensors"
        with explained(path, StatsError, OTHER_CACHE):
            self._folder.mkdir(parents=True, exist_ok=True)
            self._remove_abandoned()
            files = arrays.settle(
                lambda name, layer, digest: self._folder / f"{self._key}.{name}.{layer}.{digest[:16]}.npy"
            )
            small = {
                f"{name}/{index}": np.ascontiguousarray(value)
                for name, values in stats.values.items()
                for index, value in enumerate(values)
                if value is not None and f"{name}/{index}" not in files
            }
            meta = {
                "key": self._key,
                "tokens": stats.tokens,
                "meta": dict(stats.meta),
                "length": {name: len(values) for name, values in stats.values.items()},
                "files": files,
                "code": code_of(stats.values),
            }
            text = json.dumps(meta, sort_keys=True)
            header = {"moebench": text, "sha256": _checksum(text, small)}
            with atomic_file(path) as file:
                file.write(save(small, header))
        return path

    def _remove_abandoned(self) -> None:
        for partial in self._folder.glob(f".*{SUFFIX}"):
            if time.time() - partial.stat().st_mtime > _ABANDONED:
                partial.unlink(missing_ok=True)


def _checksum(meta: str, arrays: Mapping[str, Array]) -> str:
    hasher = hashlib.sha256(meta.encode())
    for name in sorted(arrays):
        hasher.update(f"{name}{arrays[name].dtype}{arrays[name].shape}".encode())
        hasher.update(arrays[name].tobytes())
    return hasher.hexdigest()


def _read(path: Path, key: str, needs: Collection[str], sampling: Mapping[str, int]) -> Stats | None:
    """Return ``needs`` from ``path``, or None where it is damaged, lacks one, or was written for other settings."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - a method, not a mapping
        meta = json.loads(header["moebench"])
        if header["sha256"] != _checksum(header["moebench"], arrays) or meta["key"] != key:
            return None
        lengths: dict[str, int] = meta["length"]
        settings: dict[str, Any] = meta["meta"]
        if not (set(needs) <= lengths.keys() <= CATALOGUE.keys() and sampling.items() <= settings.items()):
            return None
        if any(meta["code"][name] != digest for name, digest in code_of(needs).items()):
            return None
        for name, entry in meta["files"].items():
            if name.split("/")[0] in needs:
                found = recalled(path.with_name(entry["file"]), entry["blake3"])
                if found is None:
                    return None
                arrays[name] = found
        values = {name: tuple(arrays.get(f"{name}/{index}") for index in range(lengths[name])) for name in needs}
        return Stats(values, meta["tokens"], settings)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        return None
