"""A grid in the terminal: all of its runs as they stand, and at the end what became of them."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from analysis.board import Board
from sweeps.grid import run_grid
from sweeps.grid_config import GridConfig, Job, jobs
from sweeps.grid_progress import GridResult, Progress


def show_grid(config: GridConfig, track: str | None, console: Console) -> GridResult:
    """Run a grid, show its progress, and print its summary.

    Args:
        config: the grid.
        track: W&B mode, None for the default of `moebench run`.
        console: where to write.
    """
    board = board_of(config, console)

    def told(progress: Progress) -> None:
        while progress.steps:
            step = progress.steps.pop(0)
            board.note(step.row, step.stage, lane=step.slot, reason=step.reason, average=step.average)

    with Live(board, console=console, refresh_per_second=4) if console.is_terminal else nullcontext():
        result = run_grid(config, track=track, told=told)
    for line in summary(result):
        console.print(line, highlight=False, soft_wrap=True)
    return result


def board_of(config: GridConfig, console: Console) -> Board:
    """Return all runs of a grid, listed before any begins.

    Args:
        config: the grid.
        console: where it is shown.
    """
    board = Board(console)
    several = len(config.calibration.corpora) > 1, len(config.calibration.seeds) > 1
    for job in jobs(config, config.store):
        for row, told in zip(job.rows, job.settings, strict=True):
            where = "" if job.base else _where(job, *several)
            board.add(
                row,
                Path(job.config.model).name,
                told + where,
                _stages(job),
                base=job.base,
                parts=max(len(job.config.evaluation.tasks), 1),
            )
    return board


def _where(job: Job, corpora: bool, seeds: bool) -> str:
    own = job.config.calibration
    return (f" · {own.corpus}" if corpora else "") + (f" · seed {own.seed}" if seeds else "")


def _stages(job: Job) -> list[str]:
    config = job.config
    own = [] if job.base else ["calibrate", "plan", "apply", *(["recover"] if config.recovery else [])]
    return [*own, *(["evaluate"] if config.evaluation.tasks else []), *(["time"] if config.timing.enabled else [])]


def summary(result: GridResult) -> list[Table | str]:
    """Return what a reader should know at the end: counts, what did not complete and why, and where the records are."""
    lines: list[Table | str] = []
    if result.problems:
        table = Table("runs", "model", "method", "status", "reason", box=None)
        for (model, method, status, reason), count in sorted(result.problems.items()):
            table.add_row(str(count), Path(model).name, method, status, reason)
        lines.append(table)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(result.counts.items()))
    logs = f". Logs of the processes: {result.logs}" if result.logs.exists() else ""
    lines.append(f"{counts} in {result.seconds:.0f} s. Records: {result.records}{logs}")
    return lines
