"""A sweep from its settings to its outcome: in this process, or by several workers."""

from __future__ import annotations

from pathlib import Path

from sweeps.executors.local import Local
from sweeps.journal import missing_trials, open_study
from sweeps.outcome import SweepResult, outcome
from sweeps.resident import Resident
from sweeps.sweep_config import SweepConfig
from sweeps.task_guard import check_objectives
from sweeps.trials import Progress, work
from sweeps.workers import run_workers


def run_sweep(
    config: SweepConfig, *, store: Path, progress: Progress | None = None, resident: Resident | None = None
) -> SweepResult:
    """Run, or continue, a sweep until ``config.trials`` trials are complete, and write its outcome.

    Args:
        config: the sweep.
        store: folder of the store; the sweep lives in ``store/sweeps/<name>``.
        progress: called with each finished trial.
        resident: the model and its statistics, where the caller has them; else they are loaded when needed.

    Raises:
        ConfigError: an objective on reported tasks, or a study of that name with other settings.
        EvaluationError: trials fail one after another; what is complete is kept.
        RecordError: the storage does not answer any more.
        RefusedError: trials are refused one after another.
    """
    from sweeps.storages import answering

    check_objectives(config)
    study = open_study(config, config.folder(store))
    with answering(config.storage):
        try:
            if missing_trials(study, config.trials):
                if resident is None and (config.jobs > 1 or not isinstance(config.executor, Local)):
                    run_workers(config, study, store=store, progress=progress)
                else:
                    work(config, study, store=store, progress=progress, resident=resident)
        finally:
            result = outcome(config, study, store)
    return result
