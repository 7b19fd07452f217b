"""Files made of records: tables, pages and figures, written as records are."""

from __future__ import annotations

from pathlib import Path

from bench.store.atomic import write_atomically


def write_derived(path: Path, content: bytes) -> Path:
    """Write ``content`` to ``path`` in one atomic step, and return ``path``.

    Raises:
        RecordError: the disk refuses.
    """
    return write_atomically(path, content, remedy="free space or choose another folder")
