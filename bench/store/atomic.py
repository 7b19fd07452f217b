"""Files that appear complete or not at all: the one place that writes to a hidden file beside the target and renames it."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from methods.framework.errors import MoebenchError, RecordError

SUFFIX = ".partial"
"""How the hidden names of unfinished files and folders end."""
SCRATCH = f".scratch{SUFFIX}"
"""How those end that hold their full size from the start, and are removed as soon as their process is gone."""
OTHER_STORE = "free space or choose another --store"
OTHER_CACHE = "free space or name another cache folder"


def open_partial(folder: Path, *, buffered: bool = True) -> tuple[IO[bytes], Path]:
    """Return a new file, open for reading and writing, and its hidden path in ``folder``.

    The permissions are those that any new file of this user gets, so that others can read a store that is shared.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f".{uuid.uuid4().hex}{SUFFIX}"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    return os.fdopen(descriptor, "r+b", buffering=-1 if buffered else 0), path


def open_scratch(folder: Path) -> tuple[IO[bytes], Path]:
    """Return a new file like ``open_partial``, locked for as long as it is open, so that one left by a kill is known as such.

    Raises:
        OSError: the folder cannot be made or written to.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f".{uuid.uuid4().hex}{SCRATCH}"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if path.exists():
            return os.fdopen(descriptor, "r+b", buffering=0), path
        os.close(descriptor)  # another process took it for an orphan before it was locked


def remove_orphans(folder: Path) -> None:
    """Remove the scratch files of processes that were killed: nobody holds their lock any more."""
    for path in folder.glob(f".*{SCRATCH}"):
        with suppress(OSError), path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink(missing_ok=True)


def settle(file: IO[bytes], partial: Path, path: Path, *, once: bool = False, durable: bool = True) -> None:
    """Give the file of ``open_partial`` its lasting name in one atomic step.

    Args:
        file: still open.
        partial: its hidden path, which is gone afterwards.
        path: the lasting one, on the same disk.
        once: leave a file alone that stands there already, instead of replacing it.
        durable: wait until the bytes are on the disk first, so that the name never outlives a crash without them.

    Raises:
        FileExistsError: with ``once``, where there is a file already.
        OSError: the disk refuses.
    """
    file.flush()
    if durable:
        os.fsync(file.fileno())
    if once:
        os.link(partial, path)
        os.unlink(partial)
    else:
        os.replace(partial, path)


@contextmanager
def explained(path: Path, error: type[MoebenchError], remedy: str) -> Iterator[None]:
    """Turn what the disk refuses into an error for the user.

    Args:
        path: what is being written.
        error: kind of error.
        remedy: what to do about it, the end of the message.
    """
    try:
        yield
    except OSError as refusal:
        raise error(f"cannot write {path}: {refusal.strerror}; {remedy}") from refusal


@contextmanager
def atomic_file(path: Path, *, once: bool = False, durable: bool = True) -> Iterator[IO[bytes]]:
    """Lend a file that takes the name ``path`` on success; on any exception nothing is left of it.

    Args:
        path: where it goes; its folder is made if need be.
        once: as in ``settle``.
        durable: as in ``settle``.

    Raises:
        OSError: the disk refuses; what was there before is untouched.
    """
    file, partial = open_partial(path.parent)
    try:
        with file:
            yield file
            settle(file, partial, path, once=once, durable=durable)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(
    path: Path,
    content: str | bytes,
    error: type[MoebenchError] = RecordError,
    remedy: str = OTHER_STORE,
) -> Path:
    """Write ``content`` to ``path`` in one atomic step, wait until it is on the disk, and return ``path``.

    Args:
        path: where it goes; its folder is made if need be.
        content: bytes, or text that is written as UTF-8.
        error: raised where the disk refuses; what was there before is untouched.
        remedy: end of its message.

    Raises:
        MoebenchError: ``error``.
    """
    with explained(path, error, remedy), atomic_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
    return path
