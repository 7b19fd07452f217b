"""Tasks of a Slurm array, through submitit: each a worker with its own cores, memory and GPUs, requeued when it is preempted.

The store must lie on a file system that all nodes see, and this environment too.
"""

from __future__ import annotations

import importlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from methods.framework.errors import ConfigError, EvaluationError
from sweeps.executor import Executor, Handle, Worker, interrupt

if TYPE_CHECKING:
    from submitit import Job
    from submitit.helpers import DelayedSubmission

_ASK_SECONDS = 3.0
"""Seconds between two questions to Slurm."""

INTERRUPTED = 130

_ENDED = frozenset(
    {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED"}
    | {"TIMEOUT"}
)


class Slurm(Executor):
    """Tasks of a Slurm array."""

    name: Literal["slurm"] = "slurm"
    partition: str | None = Field(default=None, description="null: the cluster's default")
    minutes: int = Field(default=240, ge=1, description="time limit of a task; it is requeued when that is up")
    cpus: int = Field(default=8, ge=1, description="cores of a task")
    gpus: int = Field(default=1, ge=0, description="GPUs of a task")
    memory_gb: int = Field(default=64, ge=1, description="main memory of a task, in GiB")
    requeues: int = Field(default=3, ge=0, description="times that a task is requeued after its time limit")
    warning: int = Field(default=90, ge=1, description="seconds before the limit in which a task gives its trial back")
    address: str | None = Field(
        default=None, description="of this machine, as nodes reach it; null: its host name (only grids need it)"
    )
    setup: tuple[str, ...] = Field(default=(), description="lines of shell before a task, such as module load cuda")
    options: dict[str, str | int | bool] = Field(
        default_factory=dict, description="further options of sbatch, such as account: NAME or gres: gpu:a100:1"
    )

    @property
    def host(self) -> str:
        """Name of this machine by which workers reach it."""
        return self.address or socket.gethostname()

    def submit(self, workers: Sequence[Worker]) -> list[Handle]:
        """Queue the workers as one array.

        Raises:
            ConfigError: Slurm's commands are not here.
            EvaluationError: Slurm refuses.
        """
        if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
            raise ConfigError(
                f"executor slurm: no command {', '.join(missing)} on PATH; start this on a machine of the cluster, or "
                "use executor: local"
            )
        import submitit

        for worker in workers:
            worker.log.unlink(missing_ok=True)  # a task that is requeued appends
        folder = workers[0].log.parent.resolve() / "slurm"
        executor = submitit.SlurmExecutor(folder, max_num_timeout=self.requeues)
        executor.update_parameters(**self._parameters(workers))
        try:
            with executor.batch():
                jobs = [executor.submit(Task(worker, worker.threads or self.cpus)) for worker in workers]
        except (submitit.core.utils.FailedSubmissionError, submitit.core.utils.FailedJobError, OSError) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            raise EvaluationError(f"Slurm refuses the workers: {lines[-1] if lines else error}") from error
        queue = Queue([job.job_id for job in jobs])
        return [TaskHandle(job, queue) for job in jobs]

    def _parameters(self, workers: Sequence[Worker]) -> dict[str, Any]:
        options: dict[str, Any] = {"gres": f"gpu:{self.gpus}"} if self.gpus else {}
        options |= {"partition": self.partition} if self.partition else {}
        return {
            "job_name": f"moebench-{workers[0].log.parent.name}",
            "time": self.minutes,
            "nodes": 1,
            "ntasks_per_node": 1,
            "cpus_per_task": self.cpus,
            "mem": f"{self.memory_gb}G",
            "signal_delay_s": self.warning,
            "setup": list(self.setup),
            # Since Slurm 22.05, srun does not take this from sbatch.
            "srun_args": [f"--cpus-per-task={self.cpus}"],
            "additional_parameters": {"requeue": True, **options, **self.options},
        }


class Task:
    """What a node runs: the worker's program, in the process that Slurm signals."""

    def __init__(self, worker: Worker, threads: int) -> None:
        """Describe it.

        Args:
            worker: who it is.
            threads: that it may use.
        """
        self._worker, self._threads = worker, threads
        self._requeued = self._asked_to_end = False

    def __call__(self) -> int:
        """Run the worker and return its exit code; everything that it prints goes to its log.

        Raises:
            SystemExit: Slurm asked it to end. Whether it is started again, Slurm alone knows.
        """
        sys.stdout.flush()
        sys.stderr.flush()
        log = os.open(self._worker.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ |= {name: str(self._threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        print(f"task {os.environ.get('SLURM_JOB_ID')} on {socket.gethostname()}, GPUs {gpus}", flush=True)
        signal.signal(signal.SIGTERM, self._interrupt)
        try:
            code = int(importlib.import_module(self._worker.module).main(self._worker.arguments))
        except SystemExit as end:
            if self._requeued:
                raise
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except KeyboardInterrupt:
            code = INTERRUPTED
        if self._asked_to_end:
            come_again()
            sys.exit(code)
        return code

    def _interrupt(self, number: int, frame: object) -> None:
        self._asked_to_end = True
        interrupt(number, frame)

    def checkpoint(self) -> DelayedSubmission:
        """Return what is to be run when Slurm starts the task again: the same."""
        from submitit.helpers import DelayedSubmission

        self._requeued = True
        return DelayedSubmission(Task(self._worker, self._threads))


def come_again() -> None:
    """Have Slurm queue this task again if it is preempted: one that ends by itself in the time that it is given has failed."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None or shutil.which("scontrol") is None:
        return
    shown = subprocess.run(["scontrol", "--oneliner", "show", "job", job], capture_output=True, text=True).stdout
    if is_preempted(shown):
        subprocess.run(["scontrol", "requeue", job], capture_output=True)


def is_preempted(text: str) -> bool:
    """Tell whether another job takes the place of the one that ``scontrol show job`` describes."""
    found = re.search(r"\bPreemptTime=(\S+)", text)
    return found is not None and found[1] not in ("None", "Unknown", "N/A")


class Queue:
    """States of an array's tasks, asked for together and not too often."""

    def __init__(self, tasks: Sequence[str]) -> None:
        """Watch ``tasks``, by their ids."""
        self._array = tasks[0].split("_")[0]
        self._states: dict[str, str] = {}
        self._forgotten = False
        self._asked = float("-inf")

    def state(self, task: str) -> str:
        """Return Slurm's word for the state of a task; GONE once Slurm has forgotten it."""
        if time.monotonic() - self._asked > _ASK_SECONDS:
            self._ask()
            self._asked = time.monotonic()
        return "GONE" if self._forgotten else self._states.get(task, "PENDING")

    def _ask(self) -> None:
        command = ["squeue", "--noheader", "--array", "--states=all", f"--jobs={self._array}", "--format=%i|%T"]
        answer = subprocess.run(command, capture_output=True, text=True)
        if answer.returncode == 0:
            self._states |= read_states(answer.stdout)
        elif "Invalid job id" in answer.stderr:
            self._forgotten = True
        # Otherwise Slurm does not answer for a moment, and what was known stands.


def read_states(text: str) -> Mapping[str, str]:
    """Return the state of each task from lines ``ID|STATE``."""
    pairs = (line.strip().partition("|") for line in text.splitlines())
    return {task: state for task, _, state in pairs if state}


class TaskHandle:
    """A task of the array."""

    def __init__(self, job: Job[int], queue: Queue) -> None:
        """Watch a task.

        Args:
            job: as submitit knows it.
            queue: states of the array.
        """
        self._job, self._queue = job, queue
        self._code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, 1 where Slurm ended it, or None as long as it waits, runs or is requeued."""
        if self._code is None and self._job.paths.result_pickle.exists():
            self._code = self._job.result() if self._job.exception() is None else 1
        elif self._code is None and self._queue.state(self._job.job_id) in {*_ENDED, "GONE"}:
            self._code = 0 if self._queue.state(self._job.job_id) == "COMPLETED" else 1
        return self._code

    def interrupt(self) -> None:
        """Cancel it; Slurm asks it to end, and waits for a while."""
        self._cancel()

    def kill(self) -> None:
        """End it at once."""
        self._cancel("--signal=KILL", "--full")

    def _cancel(self, *options: str) -> None:
        subprocess.run(["scancel", *options, self._job.job_id], capture_output=True)
