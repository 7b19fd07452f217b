"""Folders that appear complete or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.store.atomic import SUFFIX


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Lend a hidden folder beside ``out``; on success everything in it is synced to disk and it takes the name ``out``.

    On an exception the folder is removed. One left behind by a killed process (nobody holds its lock any more) is
    removed by the next call for the same ``out``.

    Raises:
        OSError: the disk refuses, or ``out`` exists and is not an empty folder.
    """
    _sweep(out)
    folder, lock = _locked(out)
    try:
        yield folder
        for path in folder.iterdir():
            sync(path)
        os.fsync(lock)
        os.rename(folder, out)
        sync(out.parent)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(out: Path) -> tuple[Path, int]:
    """Return a new hidden folder and a descriptor that holds its lock for as long as this process lives."""
    while True:
        folder = out.parent / f".{out.name}.{uuid.uuid4().hex[:12]}{SUFFIX}"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if folder.exists():
            return folder, lock
        os.close(lock)  # another process swept it away before it was locked


def _sweep(out: Path) -> None:
    """Remove what killed processes left for ``out``."""
    for folder in out.parent.glob(f".{glob.escape(out.name)}.*{SUFFIX}"):
        try:
            lock = os.open(folder, os.O_RDONLY)
        except OSError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass  # its process is at work
        finally:
            os.close(lock)
