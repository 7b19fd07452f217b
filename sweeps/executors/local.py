"""Processes on this machine, each with its share of the threads and one of the visible GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Literal

from sweeps.executor import Executor, Handle, Worker


class Local(Executor):
    """Processes on this machine."""

    name: Literal["local"] = "local"

    @property
    def host(self) -> str:
        """Name of this machine by which workers reach it."""
        return "localhost"

    def submit(self, workers: Sequence[Worker]) -> list[Handle]:
        """Start the workers."""
        return [Process(worker) for worker in workers]


class Process:
    """A worker as a child of this process."""

    def __init__(self, worker: Worker) -> None:
        with worker.log.open("w") as log:
            self._child = subprocess.Popen(
                [sys.executable, "-m", worker.module, *worker.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(os.environ, worker),
            )

    def poll(self) -> int | None:
        """Return the exit code, that of a signal being negative, or None as long as it runs."""
        return self._child.poll()

    def interrupt(self) -> None:
        """Send what Ctrl-C sends."""
        self._child.send_signal(signal.SIGINT)

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()
        self._child.wait()


def environment(base: Mapping[str, str], worker: Worker) -> dict[str, str]:
    """Return the environment of one worker: its share of the threads, and one of the visible GPUs.

    Args:
        base: environment of this process.
        worker: who it is for.
    """
    variables = dict(base)
    if worker.threads is None:
        variables.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // worker.count)))
    else:
        variables |= {name: str(worker.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    visible = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if visible and worker.count > 1:
        variables["CUDA_VISIBLE_DEVICES"] = visible[worker.number % len(visible)]
    return variables
