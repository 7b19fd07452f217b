"""Runs with a table in the terminal that fills as stages finish, and the leaderboard at the end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.commands.printing import print_ending
from bench.records.mirror import Tracker
from bench.records.record import Record
from bench.settings.run_settings import RunConfig
from bench.store.store import Store
from methods.framework.errors import UnknownNameError

if TYPE_CHECKING:
    from analysis.board import Board
    from bench.running.run import Run
    from bench.running.subject import Subject

MODES = ("offline", "online", "disabled")


def run_with_table(
    configs: Sequence[RunConfig], store: Path, track: str | None, *, then: Callable[[Tracker], None] | None = None
) -> None:
    """Execute ``configs`` one after the other under a live table, then print their leaderboard, where it lies and what is next.

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

    from analysis.board import Board
    from analysis.console import print_leaderboard
    from analysis.frame import frame
    from bench.commands.library_log import library_log
    from bench.commands.outcome import end_with_outcome
    from bench.records.overview_run import track_overview
    from bench.records.record import read_records
    from bench.running.run import Run

    tracker = tracker_of(track, store)
    transformers.logging.disable_progress_bar()  # it would write across the table
    console = Console()
    where = Store(store)
    board = Board(console)
    report = reporter(board)
    runs: list[Run] = []
    records: list[Record] = []
    with tracker, library_log(where.root, console) as noise:
        with console.status("reading models and tasks"):
            for config in configs:
                scored = config.model_copy(update={"evaluation": config.evaluation.expanded(where.root)})
                runs.append(Run(scored, where, tracker, report))
                add_run(board, runs[-1])
        with Live(board, console=console, refresh_per_second=4) if console.is_terminal else nullcontext():
            while runs:
                records += runs.pop(0).execute()  # whose model and statistics are gone with it
        track_overview(records, tracker)
    wanted = {record.id for record in records}
    print_leaderboard(frame([record for record in read_records(where.records) if record.id in wanted]), console)
    if then is not None:
        then(tracker)
    places = {"records": where.records, "checkpoints": where.checkpoints}
    if tracker.runs.exists():
        places["W&B"] = tracker.runs
    print_ending(
        console,
        {**places, **noise.place()},
        [
            (f"moebench report {store}", "writes the leaderboard page, tables and figures"),
            (f"moebench show {records[-1].id} --store {store}", "one record in full"),
            (f"moebench status {store}", "what the store holds"),
        ],
    )
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


def add_run(board: Board, run: Run) -> None:
    """List the rows of a run, with the stages that each will pass."""
    from bench.running.announced import beginning

    config = run.config
    tasks = config.evaluation.tasks
    after = [*(["evaluate"] if tasks else []), *(["time"] if config.timing.enabled else [])]
    for subject in run.subjects:
        own = [] if subject.method is None else ["calibrate", "plan", "apply"]
        own += ["recover"] if subject.recovery else []
        board.add(
            id(subject),
            run.checkpoint.name,
            beginning(subject, config, run.checkpoint).setting,
            [*own, *after],
            base=subject.method is None,
            parts=max(len(tasks), 1),
        )


def reporter(board: Board) -> Callable[[Subject, str], None]:
    """Return what a run calls with a subject and its stage."""

    def report(subject: Subject, stage: str) -> None:
        board.note(id(subject), stage, reason=subject.reason or "", average=_average(subject))

    return report


def _average(subject: Subject) -> float | None:
    """Return the mean of the headline metrics in which more is better, as the leaderboard has it; None until known."""
    from analysis.mean import average

    return average(subject.record.scores if subject.record else subject.evaluation.scores if subject.evaluation else ())
