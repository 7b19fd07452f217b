"""A grid of runs in several processes that share one store: resumable, and no run's failure stops another.

Records are written once and stages are cached by content, so the same command goes on after any interruption. The
bases are measured first: every other run compares itself with a base, and two processes must not write the same record.
"""

from __future__ import annotations

import time

from sweeps.executor import Executor
from sweeps.grid_config import GridConfig, Job, jobs
from sweeps.grid_pool import Pool, Told, without_result
from sweeps.grid_progress import GridResult, Progress, Step


def run_grid(
    config: GridConfig,
    *,
    track: str | None = None,
    told: Told = lambda progress: None,
    executor: Executor | None = None,
) -> GridResult:
    """Run what the store does not hold yet.

    A process that dies, or code that fails otherwise than with a message of this project, costs the method it was at:
    the rest of its job is run again, one method at a time.

    Args:
        config: the grid.
        track: W&B mode, None for the default of `moebench run`.
        told: called when something changes.
        executor: where the processes run, None for what the grid says.

    Raises:
        EvaluationError: no process can be started.
        MoebenchError: a setting that no run can start with, such as an unknown task.
    """
    started = time.monotonic()
    todo = jobs(config, config.store)
    progress = Progress(total=sum(job.runs for job in todo))
    with Pool(config, executor or config.executor, track, progress, told) as pool:
        pool.run([job for job in todo if job.base])
        lost = {outcome.model: outcome.reason for outcome in progress.ended if outcome.status != "complete"}
        ready: list[Job] = []
        for job in todo:
            if job.base:
                continue
            if reason := lost.get(job.config.model):
                progress.begun += job.runs
                told_reason = f"the base could not be measured: {reason}"
                progress.ended += without_result(job, "cancelled", told_reason)
                progress.steps += [Step(row, "cancelled", reason=told_reason) for row in job.rows]
            else:
                ready.append(job)
        pool.run(ready)
    return GridResult(tuple(progress.ended), time.monotonic() - started, config.store / "records", pool.folder)
