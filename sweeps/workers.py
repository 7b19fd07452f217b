"""Several workers on one study; they share nothing but its storage."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

from bench.store.store import write_json
from methods.framework.errors import EvaluationError
from sweeps.executor import Worker, stop, wait
from sweeps.outcome import TrialRow
from sweeps.scoring import Advance
from sweeps.stages import lacking
from sweeps.sweep_config import CONFIG, SweepConfig
from sweeps.tally import Tallies
from sweeps.trials import Progress

if TYPE_CHECKING:
    from optuna import Study

MODULE = "sweeps.worker"
_POLL = 0.5
_END = 20.0
"""Seconds that workers get to end of themselves, once the study has its trials."""


def write_config(config: SweepConfig, store: Path) -> Path:
    """Write the resolved configuration where workers read it, and return its path."""
    path = config.folder(store) / CONFIG
    write_json(path, config.model_dump(mode="json"))
    return path


def arguments(config: Path, store: Path, worker: int | str) -> tuple[str, ...]:
    """Return the arguments of one worker.

    Args:
        config: path of the resolved configuration.
        store: folder of the store.
        worker: its number.
    """
    return (str(config), "--store", str(store), "--worker", str(worker))


def run_workers(
    config: SweepConfig,
    study: Study,
    *,
    store: Path,
    progress: Progress | None = None,
    advance: Advance = lambda done, number: None,
) -> None:
    """Start ``config.jobs`` workers, report cells of the score table and trials as they finish, and wait for all.

    A worker that dies leaves its trial to the others. On Ctrl-C all are asked to stop, and give back their trials.

    Args:
        config: the sweep.
        study: its study, open.
        store: folder of the store.
        progress: called with each finished trial.
        advance: called with the measurements of the score table that are done, and their number.

    Raises:
        EvaluationError: every worker failed; the message holds the end of a log.
    """
    path = write_config(config, store)
    workers = [
        Worker(MODULE, arguments(path, store, number), path.parent / f"worker-{number}.log", number, config.jobs)
        for number in range(config.jobs)
    ]
    told: set[int] = {trial.number for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()}
    table = _Reported(Tallies(path.parent, config.jobs), advance)
    handles = config.executor.submit(workers)
    try:
        while True:
            alive = any(handle.poll() is None for handle in handles)
            table.report()
            _report(study, told, progress)
            if not lacking(study, config.trials):
                wait(handles, _END)
                break
            if not alive:
                break
            time.sleep(_POLL)
        table.report()
        _report(study, told, progress)
    finally:
        stop(handles)
    if missing := lacking(study, config.trials):
        failed = [worker for worker, handle in zip(workers, handles, strict=True) if handle.poll()]
        told_last = [worker.log.read_text() for worker in failed[:1] if worker.log.exists()]
        lines = [line for text in told_last for line in text.splitlines() if line.strip()]
        raise EvaluationError(
            f"{len(failed)} of {config.jobs} workers failed and {missing} trials are missing; worker "
            f"{[worker.number for worker in failed[:1]]}: {lines[-1] if lines else 'no message'}. Logs: "
            f"{path.parent}/worker-*.log. Complete trials are kept; start the same sweep again"
        )


class _Reported:
    """Passes on how far the score table is, where that has changed, until it is complete."""

    def __init__(self, tallies: Tallies, advance: Advance) -> None:
        self._tallies, self._advance = tallies, advance
        self._last: tuple[int, int] | None = None

    def report(self) -> None:
        if self._last is not None and self._last[0] == self._last[1]:
            return
        now = self._tallies.read()
        if now is not None and now != self._last:
            self._last = now
            self._advance(*now)


def _report(study: Study, told: set[int], progress: Progress | None) -> None:
    """Pass on trials that finished since the last call."""
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.number not in told:
            told.add(trial.number)
            if progress is not None:
                progress(TrialRow.of(trial))
