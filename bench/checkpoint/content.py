"""Digest of a checkpoint's content: its config, the bytes of its safetensors files, and those of the files beside them.

A file's digest is remembered under its identity (path, size, modification and change time, inode), and only when the
file had been left alone for a while before it was read: a change within one tick of the file system's clock would go
unseen. Change time, unlike modification time, cannot be set back.
"""

from __future__ import annotations

import fnmatch
import json
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from blake3 import blake3

from bench.store.atomic import atomic_file
from methods.framework.errors import CheckpointError
from methods.framework.outside import an_object, read_json

_QUIET_NS = 3_000_000_000
"""A file changed more recently than this is hashed each time."""
_BUFFER = 8 << 20


PLAN_FILE = "plan.json"
"""What a checkpoint of ours was made by, and the digest of what was written."""
COMPANIONS = ("*.json", "*.jinja", "*.model", "*.txt", "*.py", "*.tiktoken")
"""Files beside the weights that can change an answer: tokenizer, chat template, settings of generation, code."""
_INERT = ("config.json", PLAN_FILE, "*.index.json", "training.json")
"""Files of such names that cannot, or that are part of the digest in another form."""


def plan_document(folder: Path) -> dict[str, Any] | None:
    """Return ``plan.json`` of a checkpoint, None where it has none.

    Raises:
        CheckpointError: it cannot be read, or is no JSON object.
    """
    path, remedy = folder / PLAN_FILE, "write the checkpoint again"
    if not path.exists():
        return None
    return an_object(read_json(path, CheckpointError, remedy), str(path), CheckpointError, remedy)


def stated_digest(folder: Path) -> str | None:
    """Return the digest of what was written to ``folder``, as its ``plan.json`` states it; None where nothing is stated.

    Raises:
        CheckpointError: ``plan.json`` is damaged.
    """
    return _stated(folder, "written")


def stated_moments(folder: Path) -> str | None:
    """Return the digest of the statistics that ``folder`` was made of, as its ``plan.json`` states it; None where of none.

    Raises:
        CheckpointError: ``plan.json`` is damaged.
    """
    return _stated(folder, "moments")


def _stated(folder: Path, name: str) -> str | None:
    provenance = (plan_document(folder) or {}).get("provenance")
    stated = provenance.get(name) if isinstance(provenance, dict) else None
    return stated if isinstance(stated, str) else None


def companions(folder: Path) -> tuple[Path, ...]:
    """Return the files beside the weights of a checkpoint that can change an answer, sorted by name."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    wanted = (name for name in names if _matches(name, COMPANIONS) and not _matches(name, _INERT))
    return tuple(folder / name for name in wanted)


def _matches(name: str, globs: Iterable[str]) -> bool:
    return any(fnmatch.fnmatch(name, glob) for glob in globs)


def content_digest(config: Mapping[str, Any], files: Iterable[Path]) -> str:
    """Return the BLAKE3 digest of the config (as canonical JSON) and of every file with its name, sorted by name."""
    total = blake3(json.dumps(config, sort_keys=True, separators=(",", ":")).encode())
    for path in sorted(files, key=lambda path: path.name):
        total.update(f"\n{path.name}\n{file_digest(path)}".encode())
    return str(total.hexdigest())


def file_digest(path: Path) -> str:
    """Return the BLAKE3 digest of a file, from the memo where that is safe.

    Raises:
        CheckpointError: the file cannot be read, or changed meanwhile.
    """
    try:
        path = path.resolve()
        before = path.stat()
        key = _identity(path, before)
        memo = _memo_folder() / blake3(key.encode()).hexdigest(length=16)
        if (known := _recall(memo, key)) is not None:
            return known
        digest = _hash(path)
        after = path.stat()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror}") from error
    if _identity(path, after) != key:
        raise CheckpointError(f"{path} changed while it was read; wait until it is complete and run again")
    if time.time_ns() - max(before.st_ctime_ns, before.st_mtime_ns) > _QUIET_NS:
        _remember(memo, key, digest)
    return digest


def _hash(path: Path) -> str:
    digest, buffer = blake3(), bytearray(_BUFFER)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            digest.update(view[:size])
    return str(digest.hexdigest())


def _identity(path: Path, stat: os.stat_result) -> str:
    return json.dumps([str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_dev])


def _memo_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moebench" / "content"


def _recall(memo: Path, key: str) -> str | None:
    try:
        known = json.loads(memo.read_text())
    except (OSError, ValueError):
        return None
    return str(known["digest"]) if isinstance(known, dict) and known.get("key") == key else None


def _remember(memo: Path, key: str, digest: str) -> None:
    """Store a digest; a cache that cannot be written is no error, the file is hashed again next time."""
    try:
        with atomic_file(memo, durable=False) as file:
            file.write(json.dumps({"key": key, "digest": digest}).encode())
    except OSError:
        return
