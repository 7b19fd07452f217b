"""Several workers on one study; they share nothing but the journal."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from bench.store.store import write_json
from methods.framework.errors import EvaluationError
from sweeps.journal import missing_trials
from sweeps.outcome import TrialRow
from sweeps.sweep_config import SweepConfig
from sweeps.trials import Progress

if TYPE_CHECKING:
    from optuna import Study

CONFIG = "config.json"
_POLL = 0.5


def write_config(config: SweepConfig, store: Path) -> Path:
    """Write the resolved configuration where workers read it, and return its path."""
    path = config.folder(store) / CONFIG
    write_json(path, config.model_dump(mode="json"))
    return path


def run_workers(config: SweepConfig, study: Study, *, store: Path, progress: Progress | None = None) -> None:
    """Start ``config.jobs`` workers, report trials as they finish, and wait for all.

    A worker that dies leaves its trial to the others. On Ctrl-C all are asked to stop, and give back their trials.

    Raises:
        EvaluationError: every worker failed; the message holds the end of a log.
    """
    path = write_config(config, store)
    workers = []
    for index in range(config.jobs):
        log = path.parent / f"worker-{index}.log"
        with log.open("w") as file:
            workers.append(
                subprocess.Popen(
                    command(path, store, index),
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env=_environment(os.environ, index, config.jobs),
                    cwd=os.getcwd(),
                )
            )
    told: set[int] = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    try:
        while True:
            alive = any(worker.poll() is None for worker in workers)
            _report(study, told, progress)
            if not alive:
                break
            time.sleep(_POLL)
    finally:
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGINT)
        for worker in workers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(timeout=30)
            if worker.poll() is None:
                worker.kill()
    if missing := missing_trials(study, config.trials):
        failed = [index for index, worker in enumerate(workers) if worker.returncode]
        logs = [(path.parent / f"worker-{index}.log").read_text().strip() for index in failed]
        last = logs[0].splitlines()[-1] if logs and logs[0] else "no message"
        raise EvaluationError(
            f"{len(failed)} of {config.jobs} workers failed and {missing} trials are missing; worker {failed[:1]}: "
            f"{last}. Logs: {path.parent}/worker-*.log. Complete trials are kept; start the same sweep again"
        )


def command(config: Path, store: Path, worker: int | str) -> list[str]:
    """Return the command of one worker."""
    return [sys.executable, "-m", "sweeps.worker", str(config), "--store", str(store), "--worker", str(worker)]


def _environment(base: Mapping[str, str], worker: int, jobs: int) -> dict[str, str]:
    """Return the environment of one worker: its share of the threads, and one of the visible GPUs."""
    environment = dict(base)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    visible = [name for name in base.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if visible:
        environment["CUDA_VISIBLE_DEVICES"] = visible[worker % len(visible)]
    return environment


def _report(study: Study, told: set[int], progress: Progress | None) -> None:
    """Pass on trials that finished since the last call."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.number not in told:
            told.add(trial.number)
            if progress is not None:
                progress(TrialRow.of(trial))
