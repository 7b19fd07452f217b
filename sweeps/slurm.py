"""A sweep as a Slurm array, one worker for each array task."""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from methods.framework.errors import ConfigError
from sweeps.sweep_config import SweepConfig
from sweeps.workers import MODULE, arguments, write_config


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

    Args:
        config: the sweep.
        store: folder of the store.
        jobs: array tasks.
        hours: time limit.
        cpus: cores of each task.
        gpus: GPUs of each task.
        memory_gb: main memory of each task, in GiB.
        partition: None for the cluster's default.

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
    command = [sys.executable, "-m", MODULE, *arguments(path, store.resolve(), "WORKER")]
    run = shlex.join(command).replace("WORKER", '"$SLURM_ARRAY_TASK_ID"')
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in options), "set -euo pipefail"]
    # exec: the batch signal goes to the shell alone, so the worker takes the shell's place.
    lines += [f"cd {shlex.quote(os.getcwd())}", f"export OMP_NUM_THREADS={cpus}", f"exec {run}", ""]
    return "\n".join(lines)
