"""Several workers on one study: processes on this machine, or a Slurm array on a cluster.

Run as ``python -m sweeps.launch CONFIG --store FOLDER --worker N`` it is one worker; workers share nothing but the
journal.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.store.store import write_json
from methods.framework.errors import ConfigError, EvaluationError, MoebenchError
from sweeps.study import Progress, sweep_folder
from sweeps.sweep_config import SweepConfig, load_sweep

if TYPE_CHECKING:
    from optuna import Study

CONFIG = "config.json"
_POLL = 0.5


def run_from_command_line(file: Path, store: Path) -> None:
    """Run or continue the sweep in ``file``, and show it in the terminal."""
    from rich.console import Console

    from sweeps.terminal import show_sweep

    show_sweep(load_sweep(file), store, Console())


def write_config(config: SweepConfig, store: Path) -> Path:
    """Write the resolved configuration where workers read it, and return its path."""
    path = sweep_folder(store, config) / CONFIG
    write_json(path, config.model_dump(mode="json"))
    return path


def run_workers(config: SweepConfig, study: Study, *, store: Path, progress: Progress | None = None) -> None:
    """Start ``config.jobs`` workers, report trials as they finish, and wait for all.

    A worker that dies leaves its trial to the others. On Ctrl-C all are asked to stop, and give back their trials.

    Raises:
        EvaluationError: every worker failed; the message holds the end of a log.
    """
    from sweeps.study import missing_trials

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
    if missing := missing_trials(study, config):
        failed = [index for index, worker in enumerate(workers) if worker.returncode]
        logs = [(path.parent / f"worker-{index}.log").read_text().strip() for index in failed]
        last = logs[0].splitlines()[-1] if logs and logs[0] else "no message"
        raise EvaluationError(
            f"{len(failed)} of {config.jobs} workers failed and {missing} trials are missing; worker {failed[:1]}: "
            f"{last}. Logs: {path.parent}/worker-*.log. Complete trials are kept; start the same sweep again"
        )


def command(config: Path, store: Path, worker: int | str) -> list[str]:
    """Return the command of one worker."""
    return [sys.executable, "-m", "sweeps.launch", str(config), "--store", str(store), "--worker", str(worker)]


def slurm_script(
    config: SweepConfig,
    *,
    store: Path,
    jobs: int,
    hours: int = 4,
    cpus: int = 8,
    gpus: int = 1,
    memory_gb: int = 64,
    partition: str | None = None,
) -> str:
    """Return a Slurm array script with one worker for each array task; submit it with ``sbatch``.

    The store must lie on a file system that all nodes see. A node that dies leaves its trial running; it is taken for
    lost after ``stale_after`` seconds. Submit the same script again to continue. This script was never run on a
    cluster.

    Raises:
        ConfigError: a number below 1.
    """
    for name, value in (("jobs", jobs), ("hours", hours), ("cpus", cpus), ("memory_gb", memory_gb)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, found {value}")
    path = write_config(config, store.resolve())
    folder = path.parent
    options = [
        f"--job-name={config.name}",
        f"--array=0-{jobs - 1}",
        f"--time={hours:d}:00:00",
        f"--cpus-per-task={cpus}",
        f"--mem={memory_gb}G",
        f"--output={folder}/slurm-%A_%a.log",
        "--signal=B:TERM@60",  # a minute before the time is up, so that the worker gives its trial back
    ]
    options += [f"--gres=gpu:{gpus}"] if gpus else []
    options += [f"--partition={partition}"] if partition else []
    run = shlex.join(command(path, store.resolve(), "WORKER")).replace("WORKER", '"$SLURM_ARRAY_TASK_ID"')
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "set -euo pipefail"]
    # exec: the batch signal goes to the shell alone, so the worker takes the shell's place.
    lines += [f"cd {shlex.quote(os.getcwd())}", f"export OMP_NUM_THREADS={cpus}", f"exec {run}", ""]
    return "\n".join(lines)


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
    from sweeps.outcome import TrialRow

    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.number not in told:
            told.add(trial.number)
            if progress is not None:
                progress(TrialRow.of(trial))


def _interrupt(number: int, frame: object) -> None:
    """Answer a request to end as Ctrl-C is answered: the trial in hand is given back."""
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Be one worker."""
    parser = argparse.ArgumentParser(prog="python -m sweeps.launch", description="One worker of a sweep.")
    parser.add_argument("config", type=Path, help="config.json of the sweep, or the sweep's own file")
    parser.add_argument("--store", type=Path, required=True, help="folder of the store")
    parser.add_argument("--worker", type=int, default=0, help="number of this worker; workers draw different trials")
    options = parser.parse_args(arguments)
    from sweeps.journal import open_study
    from sweeps.study import outcome, work
    from sweeps.task_guard import check_objectives

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        config = load_sweep(options.config)
        check_objectives(config)
        study = open_study(config, sweep_folder(options.store, config))
        try:
            work(config, study, store=options.store, worker=options.worker)
        finally:
            outcome(config, study, options.store)
    except MoebenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
