"""A sweep from its settings to its outcome: in this process, or by several workers."""

from __future__ import annotations

from pathlib import Path

from sweeps.executors.local import Local
from sweeps.journal import bind_code, open_study
from sweeps.outcome import CHOICE, SweepResult, outcome
from sweeps.resident import Resident
from sweeps.scoring import Advance
from sweeps.stages import lacking
from sweeps.sweep_config import SweepConfig
from sweeps.task_guard import check_objectives
from sweeps.trials import Progress, work
from sweeps.workers import run_workers, write_config


def run_sweep(
    config: SweepConfig,
    *,
    store: Path,
    progress: Progress | None = None,
    advance: Advance = lambda done, number: None,
    resident: Resident | None = None,
) -> SweepResult:
    """Run, or continue, a sweep until ``config.trials`` trials are complete, and write its outcome.

    Args:
        config: the sweep.
        store: folder of the store; the sweep lives in ``store/sweeps/<name>``.
        progress: called with each finished trial.
        advance: called with the measurements of the score table that are done, and their number.
        resident: the model and its statistics, where the caller has them; else they are loaded when needed.

    Raises:
        ConfigError: an objective on reported tasks, or a study of that name with other settings, libraries or code.
        EvaluationError: trials fail one after another; what is complete is kept.
        RecordError: the storage does not answer any more.
        RefusedError: trials are refused one after another.
    """
    from sweeps.storages import answering

    check_objectives(config)
    study = open_study(config, config.folder(store))
    write_config(config, store)
    folder = config.folder(store)
    with answering(config.storage):
        try:
            unchosen = config.final.choose is not None and not (folder / CHOICE).exists()
            if lacking(study, config.trials) or unchosen:
                bind_code(study, config, folder)
                if resident is None and (config.jobs > 1 or not isinstance(config.executor, Local)):
                    run_workers(config, study, store=store, progress=progress, advance=advance)
                else:
                    work(config, study, store=store, progress=progress, advance=advance, resident=resident)
        finally:
            result = outcome(config, study, store)
    return result
