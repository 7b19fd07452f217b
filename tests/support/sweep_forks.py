"""Workers of sweeps as forks of one process that has imported everything: starting one costs next to nothing.

Each child runs what ``python -m sweeps.worker`` runs. It may be told to stop where it stands in one of its trials, and to
say so, so that a test can kill it there.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import reduce
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGUSR1, Signals
from typing import Any

from pydantic import PrivateAttr

from sweeps.executor import Handle, Worker
from sweeps.executors.local import Local
from tests.support.places import ROOT

STAGES = {
    "ask": ("optuna", "Trial._suggest"),
    "plan": ("sweeps.knob_planner", "KnobPlanner.drawn"),
    "measure": ("sweeps.meter", "Meter._scores"),
    "tell": ("optuna", "Study.tell"),
}
"""What is called in each stage of a trial; in "ask", once for each parameter."""

PATIENCE = 120.0
"""Seconds after which something that should happen at once has not happened."""


def wait_for(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


class Nursery:
    """The process that forks."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.sweep_forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},  # threads do not survive a fork
        )

    def ask(self, **request: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()


class Child:
    """A fork; a ``Handle``."""

    def __init__(
        self,
        nursery: Nursery,
        worker: Worker,
        wait_for: Sequence[Path] = (),
        hold: int = 0,
        stage: str = "plan",
        elsewhere: bool = False,
    ) -> None:
        """Start it.

        Args:
            nursery: who forks.
            worker: what it runs.
            wait_for: files that it waits for in its first trial.
            hold: number of the call, from 1, in which it says so and stands still.
            stage: that the calls are counted of, one of ``STAGES``.
            elsewhere: whether it is to look like a process of another machine.
        """
        self.mark = worker.log.with_suffix(".mark")
        self.mark.unlink(missing_ok=True)
        self._nursery, self._code = nursery, None
        assert worker.module == "sweeps.worker"
        self.pid: int = nursery.ask(
            start=list(worker.arguments),
            log=str(worker.log),
            mark=str(self.mark),
            wait_for=[str(path) for path in wait_for],
            hold=hold,
            stage=stage,
            elsewhere=elsewhere,
        )

    def poll(self) -> int | None:
        if self._code is None:
            self._code = self._nursery.ask(poll=self.pid)
        return self._code

    def send(self, signal_number: Signals) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal_number)

    def interrupt(self) -> None:
        self.send(SIGINT)

    def kill(self) -> None:
        self.send(SIGKILL)


class Forking(Local):
    """An executor whose workers are forks; in their first trial they wait until all of them have begun one."""

    _nursery: Nursery = PrivateAttr()

    @classmethod
    def of(cls, nursery: Nursery) -> Forking:
        executor = cls()
        executor._nursery = nursery
        return executor

    def submit(self, workers: Sequence[Worker]) -> list[Handle]:
        marks = [worker.log.with_suffix(".mark") for worker in workers]
        return [Child(self._nursery, worker, wait_for=marks) for worker in workers]


def _run(request: dict[str, Any]) -> None:
    """Be the child."""
    import sweeps.heartbeat

    module, path = STAGES[request["stage"]]
    holder, name = reduce(getattr, path.split(".")[:-1], importlib.import_module(module)), path.split(".")[-1]
    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(SIGUSR1)
    called, begun = getattr(holder, name), 0

    def marked(*arguments: Any, **named: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun == (request["hold"] or 1):
            Path(request["mark"]).touch()
        if begun == 1 and request["wait_for"]:
            wait_for(lambda: all(Path(path).exists() for path in request["wait_for"]))
        if begun == request["hold"]:
            time.sleep(PATIENCE)
        return called(*arguments, **named)

    setattr(holder, name, marked)
    if request["elsewhere"]:
        sweeps.heartbeat.process_space = lambda: "elsewhere"  # type: ignore[assignment]  # the point of it
    sys.argv = ["worker", *request["start"]]
    code = 1
    try:
        runpy.run_module("sweeps.worker", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _main() -> None:
    import bench.applying.in_memory  # noqa: F401  # what children would import
    import sweeps.losses
    import sweeps.opening
    import sweeps.storages
    import sweeps.trials  # noqa: F401  # imported before the forks, which share it
    from bench.models.tiny import tiny_model

    tiny_model("olmoe")  # imports the modelling code
    for line in sys.stdin:
        request = json.loads(line)
        if "start" in request:
            pid = os.fork()
            if pid == 0:
                _run(request)
            answer: int | None = pid
        else:
            done, status = os.waitpid(request["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if done else None
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _main()
