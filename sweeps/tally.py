"""How far workers are with the score table: each notes it in a file of its own, and whoever started them adds it up.

The files lie in the study's folder, so that it makes no difference where workers run.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from sweeps.scoring import order

_TAIL = 64
"""Bytes at the end of a file that hold its last line."""


class Tally:
    """Notes how far one worker is; an ``Advance``."""

    def __init__(self, folder: Path, worker: int) -> None:
        """Note in the study's ``folder`` for the worker of this number."""
        self._path = _file(folder, worker)

    def __call__(self, done: int, number: int) -> None:
        """Note that so many of the cells are done, in the worker's own order."""
        with suppress(OSError), self._path.open("a") as file:  # which is no reason to stop measuring
            file.write(f"{done} {number}\n")


class Tallies:
    """Reads how far all workers are together."""

    def __init__(self, folder: Path, workers: int) -> None:
        """Begin anew: what earlier workers noted goes, since they may have been another number.

        Args:
            folder: of the study.
            workers: how many share the table.
        """
        self._files = [_file(folder, worker) for worker in range(workers)]
        self._furthest: dict[int, tuple[int, int]] = {}
        for path in self._files:
            path.unlink(missing_ok=True)

    def read(self) -> tuple[int, int] | None:
        """Return how many cells at least one worker is done with, and their number; None before the first."""
        for worker, path in enumerate(self._files):
            if (now := _last(path)) is not None:  # a worker that was started anew counts from 1
                self._furthest[worker] = max(now, self._furthest.get(worker, now))
        if not self._furthest:
            return None
        number = max(number for _, number in self._furthest.values())
        done: set[int] = set()
        for worker, (count, _) in self._furthest.items():
            done.update(order(number, worker, len(self._files))[:count])
        return len(done), number


def _file(folder: Path, worker: int) -> Path:
    return folder / f"table-{worker}.txt"


def _last(path: Path) -> tuple[int, int] | None:
    """Return what the last whole line of a file says."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL))
            lines = file.read().split(b"\n")[:-1]
    except OSError:  # not there yet, or not seen yet on a file system that is shared
        return None
    parts = lines[-1].split() if lines else []
    return (int(parts[0]), int(parts[1])) if len(parts) == 2 and all(map(bytes.isdigit, parts)) else None
