"""A grid of runs in several processes that share one store: resumable, and no run's failure stops another.

Records are written once and stages are cached by content, so the same command goes on after any interruption. The
bases are measured first: every other run compares itself with a base, and two processes must not write the same record.
"""

from __future__ import annotations

import multiprocessing
import os
import time
import traceback
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from methods.framework.errors import MoebenchError
from sweeps.grid_config import GridConfig, Job, jobs

Told = Callable[["Progress"], None]
Work = Callable[[Connection, Path, str | None, int], None]
"""Body of a process: takes jobs from the connection until None comes; given store, W&B mode and threads."""


@dataclass(frozen=True)
class Outcome:
    """How one run ended.

    Args:
        id: of its record; empty where there is none because the code itself failed.
    """

    model: str
    method: str
    status: str
    reason: str = ""
    id: str = ""


@dataclass
class Progress:
    """Where a grid stands.

    Args:
        begun: runs that were begun or found in the store, bases included.
        total: all runs.
        now: what each process does.
        ended: outcomes so far.
    """

    total: int
    begun: int = 0
    now: dict[int, str] = field(default_factory=dict)
    ended: list[Outcome] = field(default_factory=list)


@dataclass(frozen=True)
class GridResult:
    """What a grid came to."""

    outcomes: tuple[Outcome, ...]
    seconds: float
    records: Path

    @property
    def counts(self) -> Counter[str]:
        """Number of runs by status."""
        return Counter(outcome.status for outcome in self.outcomes)

    @property
    def problems(self) -> Counter[tuple[str, str, str, str]]:
        """Number of runs that did not complete by model, method, status and reason."""
        return Counter((o.model, o.method, o.status, o.reason) for o in self.outcomes if o.status != "complete")


def run_grid(
    config: GridConfig, *, track: str | None = None, told: Told = lambda progress: None, work: Work | None = None
) -> GridResult:
    """Run what the store does not hold yet.

    A process that dies, or code that fails otherwise than with a message of this project, costs the method it was at:
    the rest of its job is run again, one method at a time.

    Args:
        config: the grid.
        track: W&B mode, None for the default of `moebench run`.
        told: called when something changes.
        work: body of a process, by default that which executes runs.

    Raises:
        MoebenchError: a setting that no run can start with, such as an unknown task.
    """
    started = time.monotonic()
    todo = jobs(config, config.store)
    progress = Progress(total=sum(job.runs for job in todo))
    for phase in ([job for job in todo if job.base], [job for job in todo if not job.base]):
        lost = {outcome.model: outcome.reason for outcome in progress.ended if outcome.status != "complete"}
        ready = []
        for job in phase:
            if not job.base and (reason := lost.get(job.config.model)):
                progress.begun += job.runs
                progress.ended += _all(job, "cancelled", f"the base could not be measured: {reason}")
            else:
                ready.append(job)
        if ready:
            _Pool(config, track, progress, told, work or run_jobs).run(ready)
    return GridResult(tuple(progress.ended), time.monotonic() - started, config.store / "records")


def _all(job: Job, status: str, reason: str) -> list[Outcome]:
    names = [method.name for method in job.config.methods] or ["base"]
    return [Outcome(job.config.model, name, status, reason) for name in names]


class _Pool:
    """Processes that take jobs until none is left."""

    def __init__(self, config: GridConfig, track: str | None, progress: Progress, told: Told, work: Work) -> None:
        self._config, self._track, self._progress, self._told, self._work = config, track, progress, told, work
        self._workers: dict[Connection, BaseProcess] = {}
        self._busy: dict[Connection, Job] = {}
        self._begun: dict[Connection, int] = {}
        self._waiting: deque[Job] = deque()

    def run(self, todo: Sequence[Job]) -> None:
        """Run all jobs, the largest first, and stop the processes whatever happens."""
        self._waiting = deque(sorted(todo, key=lambda job: -job.runs))
        try:
            while self._waiting or self._busy:
                while self._waiting and len(self._busy) < self._config.workers:
                    idle = next((pipe for pipe in self._workers if pipe not in self._busy), None)
                    self._give(idle or self._start(), self._waiting.popleft())
                for ready in wait(list(self._busy)):
                    assert isinstance(ready, Connection)
                    self._hear(ready)
                self._told(self._progress)
        finally:
            self._stop()

    def _start(self) -> Connection:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        mine, theirs = context.Pipe()
        threads = {name: str(self._config.threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        before = {name: os.environ.get(name) for name in threads}
        os.environ.update(threads)  # libraries read them when they are loaded
        try:
            process = context.Process(
                target=self._work, args=(theirs, self._config.store, self._track, self._config.threads), daemon=False
            )
            process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        self._workers[mine] = process
        return mine

    def _give(self, pipe: Connection, job: Job) -> None:
        self._busy[pipe], self._begun[pipe] = job, 0
        self._progress.now[id(pipe)] = job.label
        with suppress(OSError):  # a dead process is noticed when it is heard
            pipe.send(job)

    def _hear(self, pipe: Connection) -> None:
        job = self._busy[pipe]
        try:
            kind, content = pipe.recv()
        except (EOFError, OSError):
            process = self._workers.pop(pipe)
            process.join()
            kind, content = "crashed", f"its process ended with exit code {process.exitcode}"
        if kind == "begun":
            title, count = content
            self._advance(pipe, min(count, job.runs))
            self._progress.now[id(pipe)] = f"{job.label}: {title}"
            return
        self._busy.pop(pipe)
        self._progress.now.pop(id(pipe), None)
        if kind == "crashed" and job.runs > 1:
            self._progress.begun -= self._begun[pipe]
            self._waiting.extend(job.split())
            return
        self._advance(pipe, job.runs)
        self._progress.ended += content if kind == "done" else _all(job, "failed", content)

    def _advance(self, pipe: Connection, begun: int) -> None:
        self._progress.begun += begun - self._begun[pipe]
        self._begun[pipe] = begun

    def _stop(self) -> None:
        for pipe, process in self._workers.items():
            if pipe in self._busy:
                process.terminate()
            else:
                with suppress(OSError):
                    pipe.send(None)
        for process in self._workers.values():
            process.join(timeout=20)
            if process.is_alive():
                process.kill()


def run_jobs(pipe: Connection, store: Path, track: str | None, threads: int) -> None:
    """Execute jobs from ``pipe`` until None comes; the body of a process."""
    import logging
    import warnings

    warnings.simplefilter("ignore")  # what matters is in the records
    logging.getLogger("moebench").setLevel(logging.ERROR)
    import torch
    import transformers

    from bench.records.mirror import Tracker

    torch.set_num_threads(threads)
    transformers.logging.disable_progress_bar()
    mode: Any = track
    with Tracker(mode, folder=store) as tracker, suppress(KeyboardInterrupt, EOFError, BrokenPipeError):
        while (job := pipe.recv()) is not None:
            try:
                message: tuple[str, Any] = ("done", execute(job, store, tracker, pipe))
            except MoebenchError as error:
                message = ("failed", str(error))
            except Exception as error:  # any code of any method may run here; the others must not suffer
                last = traceback.extract_tb(error.__traceback__)[-1]
                place = f"{Path(last.filename).name}:{last.lineno}"
                message = ("crashed", f"{type(error).__name__} at {place}: {error}")
            pipe.send(message)


def execute(job: Job, store: Path, tracker: Any, pipe: Connection) -> list[Outcome]:
    """Execute one job and return how its runs ended; ``pipe`` is told of each run that begins."""
    from bench.running.run import Run, Subject
    from bench.store.store import Store

    seen: set[int] = set()

    def report(subject: Subject, stage: str) -> None:
        wanted = (subject.method is None) == job.base
        if wanted and id(subject) not in seen:
            seen.add(id(subject))
            keep = "" if subject.method is None else f" keep={subject.method.knobs.get('keep')}"
            pipe.send(("begun", (subject.title + keep, len(seen))))

    records = Run(job.config, Store(store), tracker, report).execute()
    return [
        Outcome(job.config.model, record.method or "base", record.status, record.reason or "", record.id)
        for record in records
        if (record.method is None) == job.base
    ]
