"""Runs with a table in the terminal that fills as stages finish, and the leaderboard at the end."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.records.mirror import Tracker
from bench.records.record import Record
from bench.settings.run_settings import RunConfig
from bench.store.store import Store
from methods.framework.errors import UnknownNameError

if TYPE_CHECKING:
    from rich.table import Table

    from bench.running.subject import Subject

MODES = ("offline", "online", "disabled")


def run_with_table(
    configs: Sequence[RunConfig], store: Path, track: str | None, *, then: Callable[[Tracker], None] | None = None
) -> None:
    """Execute ``configs`` one after the other under a live table, then print their leaderboard and what did not complete.

    Args:
        configs: the runs.
        store: folder of records and cached artefacts.
        track: W&B mode: offline, online or disabled; None leaves it to ``Tracker``.
        then: called with the mirror when all is done, before this ends with what failed.

    Raises:
        Exit: a method failed; with status 1.
        UnknownNameError: ``track`` is no W&B mode.
        MoebenchError: a model, method or task that cannot be used; what was finished is kept.
    """
    import transformers
    from rich.console import Console
    from rich.live import Live

    from analysis.console import print_leaderboard
    from analysis.frame import frame
    from bench.commands.outcome import end_with_outcome
    from bench.records.overview_run import track_overview
    from bench.records.record import read_records
    from bench.running.run import Run

    tracker = tracker_of(track, store)
    transformers.logging.disable_progress_bar()  # it would write across the table
    board = Board()
    console = Console()
    where = Store(store)
    records: list[Record] = []
    live = Live(board, console=console, refresh_per_second=4)
    with tracker, live, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for config in configs:
            scored = config.model_copy(update={"evaluation": config.evaluation.expanded(where.root)})
            run = Run(scored, where, tracker, board.report)
            board.add(run.checkpoint.name, run.subjects)
            records += run.execute()
        track_overview(records, tracker)
    wanted = {record.id for record in records}
    print_leaderboard(frame([record for record in read_records(where.records) if record.id in wanted]), console)
    if then is not None:
        then(tracker)
    end_with_outcome(records, console)


def tracker_of(track: str | None, store: Path) -> Tracker:
    """Return the mirror that keeps its offline runs in the store.

    Args:
        track: W&B mode: offline, online or disabled; None leaves it to ``Tracker``.
        store: folder of the store.

    Raises:
        UnknownNameError: ``track`` is no W&B mode.
        ConfigError: online is asked for, and there is no key.
    """
    if track is not None and track not in MODES:
        raise UnknownNameError("W&B mode", track, MODES)
    from analysis.mean import average

    mode: Any = track
    return Tracker(mode, folder=store, average=average)


class Board:
    """The live table: one row per subject, with its stage, and its result as soon as there is one."""

    def __init__(self) -> None:
        """Start empty."""
        self._rows: list[tuple[str, Subject]] = []
        self._stage: dict[int, str] = {}
        self._started: dict[int, float] = {}

    def add(self, model: str, subjects: Sequence[Subject]) -> None:
        """Show the subjects of a run that begins."""
        self._rows += [(model, subject) for subject in subjects]

    def report(self, subject: Subject, stage: str) -> None:
        """Note the stage of a subject."""
        self._stage[id(subject)] = stage
        self._started.setdefault(id(subject), time.monotonic())

    def __rich__(self) -> Table:
        """Return the table as it stands."""
        from analysis.console import LiveRow, live_table

        averages = {id(subject): _average(subject) for _, subject in self._rows}
        rows, base = [], None
        for model, subject in self._rows:
            average = averages[id(subject)]
            base = average if subject.method is None else base
            stage, _, note = self._stage.get(id(subject), "waiting").partition(" ")
            rows.append(
                LiveRow(
                    model=model,
                    method=f"{subject.title} {_settings(subject)}".strip(),
                    stage=stage,
                    average=average,
                    retention=average / base if average is not None and base else None,
                    seconds=self._seconds(subject),
                    note=subject.reason or note,
                )
            )
        return live_table(rows)

    def _seconds(self, subject: Subject) -> float | None:
        started = self._started.get(id(subject))
        return None if started is None or subject.record is not None else time.monotonic() - started


def _average(subject: Subject) -> float | None:
    """Return the mean of the headline metrics in which more is better, as the leaderboard has it; None until known."""
    from analysis.mean import average

    return average(subject.record.scores if subject.record else subject.evaluation.scores if subject.evaluation else ())


def _settings(subject: Subject) -> str:
    """Return the knobs of the subject's method that differ from its defaults, and always ``keep``."""
    if subject.method is None:
        return ""
    from bench.running.planned import Planned
    from bench.running.recipe import Recipe

    if isinstance(subject.method, Planned):
        return ""  # its title tells it from others
    if isinstance(subject.method, Recipe):
        return " + ".join(step.method.title for step in subject.method.steps)
    defaults = type(subject.method)().knobs
    own = {name: value for name, value in subject.method.knobs.items() if name == "keep" or value != defaults[name]}
    return " ".join(f"{name}={value}" for name, value in own.items())
