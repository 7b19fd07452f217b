"""Workers of a grid that measure nothing: ``python -m tests.support.grid_fakes HABIT ADDRESS --worker N``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from sweeps.executor import Handle, Worker
from sweeps.executors.local import Local


class Fakes(Local):
    """An executor that starts fakes instead."""

    _habit: str = PrivateAttr()
    _log: list[Worker] = PrivateAttr(default_factory=list)

    @classmethod
    def of(cls, habit: str) -> Fakes:
        executor = cls()
        executor._habit = habit
        return executor

    @property
    def started(self) -> list[Worker]:
        """Workers that were started so far."""
        return self._log

    def submit(self, workers: Sequence[Worker]) -> list[Handle]:
        self._log.extend(workers)
        module = "tests.support.grid_fakes"
        return super().submit([replace(one, module=module, arguments=(self._habit, *one.arguments)) for one in workers])


class Restarting(Fakes):
    """An executor that starts a worker once more when it dies, as Slurm does when a node is lost."""

    def submit(self, workers: Sequence[Worker]) -> list[Handle]:
        start = super().submit
        return [_Restarted(handle, partial(start, [one])) for one in workers for handle in start([one])]


class _Restarted:
    def __init__(self, handle: Handle, again: Callable[[], list[Handle]]) -> None:
        self._handle, self._again = handle, [again]

    def poll(self) -> int | None:
        if self._handle.poll() is not None and self._handle.poll() != 0 and self._again:
            (self._handle,) = self._again.pop()()
        return self._handle.poll()

    def interrupt(self) -> None:
        self._handle.interrupt()

    def kill(self) -> None:
        self._handle.kill()


def _answer(habit: str, job: dict[str, Any]) -> dict[str, Any]:
    names = [method["name"] for method in job["config"]["methods"]] or ["base"]
    status = "complete"
    match habit:
        case "dies_of_frequency":
            if "frequency" in names:
                os._exit(3)
            if "weight_norm" in names:
                return {"kind": "crashed", "reason": "ValueError at somewhere.py:1: no"}
        case "has_no_base":
            assert job["base"]
            return {"kind": "failed", "reason": "the disk is full"}
        case "waits":
            time.sleep(600)
        case "tells_its_threads":
            status = os.environ["OMP_NUM_THREADS"]
    outcomes = [{"model": job["config"]["model"], "method": name, "status": status} for name in names]
    return {"kind": "done", "outcomes": outcomes}


def _main(habit: str, address: str, number: int) -> None:
    from sweeps.grid_messages import Line

    if habit == "cannot_start":
        sys.exit("ImportError: no such thing")
    with Line(json.loads(Path(address).read_text()), number) as line:
        while (job := line.job()) is not None:
            line.tell(kind="begun", title="", count=1)
            line.tell(**_answer(habit, job))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[4]))
