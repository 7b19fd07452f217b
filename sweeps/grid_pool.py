"""Workers of a grid that take jobs until none is left."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from methods.framework.errors import EvaluationError, RecordError
from sweeps.executor import Executor, Handle, Worker, stop, wait
from sweeps.grid_config import GridConfig, Job
from sweeps.grid_messages import Switchboard
from sweeps.grid_progress import Outcome, Progress, Step

Told: TypeAlias = Callable[[Progress], None]

MODULE = "sweeps.grid_worker"
STARTS = 3
"""Workers that may end one after another before they report: the set-up is at fault then, not a run."""

INTERRUPTIONS = 3
"""Times that a job is begun again because its worker was moved, as when a node is lost; that is no run's fault."""

_POLL = 0.5
_END = 20.0
"""Seconds that a worker gets to end, once its connection is gone or it was told that there are no more jobs."""


@dataclass
class _Member:
    """A worker that was started, and its job, if it has one.

    Args:
        slot: number among the workers that run at once.
        reported: whether it ever did.
        begun: runs of its job that were begun.
    """

    handle: Handle
    log: Path
    slot: int
    reported: bool = False
    job: Job | None = None
    begun: int = 0


class Pool:
    """Workers that take jobs until none is left; a context manager that stops them whatever happens."""

    def __init__(
        self, config: GridConfig, executor: Executor, track: str | None, progress: Progress, told: Told
    ) -> None:
        """Listen for workers; none is started before there is a job.

        Args:
            config: the grid.
            executor: where workers run.
            track: W&B mode, None for the default of `moebench run`.
            progress: kept up to date.
            told: called with it when something changes.

        Raises:
            RecordError: the disk refuses.
        """
        self._config, self._executor, self._progress, self._told = config, executor, progress, told
        self._waiting: deque[Job] = deque()
        self._members: dict[int, _Member] = {}
        self._interrupted: Counter[int] = Counter()
        self._started = self._lost = 0
        self._failed = False
        self._board = Switchboard(executor.host)
        place = config.store.resolve() / "grids"
        try:
            place.mkdir(parents=True, exist_ok=True)
            self.folder = Path(tempfile.mkdtemp(dir=place, prefix="grid-"))
        except OSError as error:
            raise RecordError(
                f"cannot write to {place}: {error.strerror}; free space or choose another --store"
            ) from error
        self._address = self.folder / "address.json"
        self._board.write_address(self._address, store=str(config.store), track=track, threads=config.threads)

    def __enter__(self) -> Self:
        self._board.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            idle = {number: member.handle for number, member in self._members.items() if member.reported}
            for number in idle:
                self._board.tell(number, None)
            wait(list(idle.values()), _END)
        stop([member.handle for member in self._members.values()])
        self._board.__exit__(kind, value, trace)
        self._address.unlink(missing_ok=True)
        if kind is None and not self._failed:
            shutil.rmtree(self.folder, ignore_errors=True)

    def run(self, todo: Sequence[Job]) -> None:
        """Run all jobs, the largest first.

        Raises:
            EvaluationError: workers end before they report.
        """
        self._waiting.extend(sorted(todo, key=lambda job: -job.runs))
        while self._waiting or any(member.job for member in self._members.values()):
            self._employ()
            if (message := self._board.next(_POLL)) is not None:
                self._hear(message.worker, message.content)
            self._bury()
            self._told(self._progress)

    def _employ(self) -> None:
        """Give jobs to workers that have none, and start workers for what is left."""
        free = [number for number, member in self._members.items() if member.job is None]
        for number in free:
            if self._members[number].reported and self._waiting:
                self._give(number, self._waiting.popleft())
        coming = sum(not member.reported for member in self._members.values())
        room = self._config.workers - len(self._members)
        if (count := min(len(self._waiting) - coming, room)) > 0:
            self._start(count)

    def _start(self, count: int) -> None:
        taken = {member.slot for member in self._members.values()}
        slots = [slot for slot in range(self._config.workers) if slot not in taken][:count]
        numbers = range(self._started, self._started + count)
        workers = [
            Worker(
                MODULE,
                (str(self._address), "--worker", str(number)),
                self.folder / f"worker-{number}.log",
                number=slot,
                count=self._config.workers,
                threads=self._config.threads,
            )
            for number, slot in zip(numbers, slots, strict=True)
        ]
        self._started += count
        for number, worker, handle in zip(numbers, workers, self._executor.submit(workers), strict=True):
            self._members[number] = _Member(handle, worker.log, worker.number)

    def _give(self, number: int, job: Job) -> None:
        member = self._members[number]
        member.job, member.begun = job, 0
        self._progress.now[member.slot] = job.label
        self._board.tell(number, job.document())

    def _hear(self, number: int, content: dict[str, Any] | None) -> None:
        if number not in self._members:
            return
        member = self._members[number]
        if content is None:
            content = self._lose(number, member)
        elif content["kind"] == "ready":
            member.reported, self._lost = True, 0
            content = {"kind": "interrupted", "reason": "its process was started again in the middle of it"}
        kind, job = content["kind"], member.job
        if job is None:
            return
        if kind == "stage":
            found = {name: content[name] for name in ("stage", "reason", "average")}
            self._progress.steps.append(Step(job.rows[content["row"]], slot=member.slot, **found))
            return
        if kind == "begun":
            self._advance(member, min(content["count"], job.runs))
            self._progress.now[member.slot] = f"{job.label}: {content['title']}"
            return
        member.job = None
        self._progress.now.pop(member.slot, None)
        if kind in ("crashed", "interrupted"):
            self._progress.steps += [Step(row, "waiting", member.slot) for row in job.rows]
        if kind == "interrupted" and self._interrupted[id(job)] < INTERRUPTIONS:
            self._interrupted[id(job)] += 1
            self._progress.begun -= member.begun
            self._waiting.append(job)
            return
        self._interrupted.pop(id(job), None)
        if kind in ("crashed", "interrupted") and job.runs > 1:
            self._progress.begun -= member.begun
            self._waiting.extend(job.split())
            return
        self._advance(member, job.runs)
        if kind == "done":
            self._progress.ended += [Outcome(**outcome) for outcome in content["outcomes"]]
        else:
            self._progress.ended += without_result(job, "failed", content["reason"])
            self._progress.steps += [Step(row, "failed", member.slot, content["reason"]) for row in job.rows]

    def _lose(self, number: int, member: _Member) -> dict[str, Any]:
        """Return how the job of a worker ended whose connection is gone; an executor may start that worker again."""
        wait([member.handle], _END)
        self._failed = True
        code = member.handle.poll()
        if code is None:
            member.reported = False
            return {"kind": "interrupted", "reason": "its connection is gone"}
        del self._members[number]
        return {"kind": "crashed", "reason": f"its process ended with exit code {code}"}

    def _bury(self) -> None:
        """Forget workers that ended before they reported."""
        for number, member in list(self._members.items()):
            if member.reported or member.handle.poll() is None:
                continue
            del self._members[number]
            self._failed = True
            self._lost += 1
            if self._lost >= STARTS:
                lines = member.log.read_text().split("\n") if member.log.exists() else []
                last = next((line for line in reversed(lines) if line.strip()), "no message")
                raise EvaluationError(
                    f"{STARTS} processes of the grid ended before they took a run, the last one with exit code "
                    f"{member.handle.poll()}: {last}. Logs: {self.folder}"
                )

    def _advance(self, member: _Member, begun: int) -> None:
        self._progress.begun += begun - member.begun
        member.begun = begun


def without_result(job: Job, status: str, reason: str) -> list[Outcome]:
    """Return the outcomes of a job whose runs all ended in one way.

    Args:
        job: the job.
        status: of each run.
        reason: of each run.
    """
    names = [method.name for method in job.config.methods] or ["base"]
    return [Outcome(job.config.model, name, status, reason) for name in names]
