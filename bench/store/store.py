"""The store: one folder that holds every artefact and record, keyed by content.

STORE/records/<id>.json          write-once records
STORE/items/<id>/<task>.json     per-item results of that record
STORE/plans/<digest>.json        plans
STORE/checkpoints/<key>/         compressed checkpoints
STORE/cache/<kind>/              statistics, scores, timings: results of stages, reused whenever their inputs agree
STORE/wandb/                     the mirror
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench.store.atomic import write_atomically


def digest_of(value: Any) -> str:
    """Return the SHA-256 (hexadecimal) of ``value`` as canonical JSON; equal values give equal digests."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def checksum(value: Any) -> str:
    """Return the SHA-256 (hexadecimal) of ``value`` as JSON, NaN and infinities included, to notice damage to a file."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path`` in one atomic step, keys sorted.

    Raises:
        RecordError: the disk refuses; what was there before is untouched.
    """
    write_atomically(path, json.dumps(value, indent=1, sort_keys=True))


class Store:
    """Paths and small JSON artefacts of one store folder."""

    def __init__(self, root: Path) -> None:
        """Use ``root``, which is created when something is written."""
        self.root = root
        self.records = root / "records"
        self.plans = root / "plans"
        self.checkpoints = root / "checkpoints"
        self.cache = root / "cache"

    def items(self, record: str) -> Path:
        """Return the folder of the per-item results of record ``record``."""
        return self.root / "items" / record

    def recall(self, kind: str, key: Mapping[str, Any]) -> dict[str, Any] | None:
        """Return the cached JSON of ``kind`` for exactly these inputs, or None; a damaged file counts as absent."""
        try:
            document = json.loads(self._cache_file(kind, key).read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(document, dict) or document.get("key") != json.loads(json.dumps(key)):
            return None
        value = document.get("value")
        return value if isinstance(value, dict) and document.get("sha256") == checksum(value) else None

    def remember(self, kind: str, key: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Cache ``value`` for these inputs; the inputs are stored beside it and compared on recall.

        Args:
            kind: folder of the cache.
            key: everything that the value depends on, as JSON values.
            value: JSON values.
        """
        write_json(self._cache_file(kind, key), {"key": key, "value": value, "sha256": checksum(value)})

    def _cache_file(self, kind: str, key: Mapping[str, Any]) -> Path:
        return self.cache / kind / f"{digest_of(key)[:32]}.json"
