"""A grid in the terminal: one line that tells how far it is, and at the end what became of the runs."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from sweeps.grid import run_grid
from sweeps.grid_config import GridConfig
from sweeps.grid_progress import GridResult, Progress

_EVERY = 30.0
"""Seconds between lines where the output is no terminal."""


def show_grid(config: GridConfig, track: str | None, console: Console) -> GridResult:
    """Run a grid, show its progress, and print its summary.

    Args:
        config: the grid.
        track: W&B mode, None for the default of `moebench run`.
        console: where to write.
    """
    columns = (
        TextColumn("grid"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
    )
    said = time.monotonic()
    with Bar(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=None)

        def told(progress: Progress) -> None:
            nonlocal said
            now = " | ".join(progress.now.values())
            bar.update(task, completed=progress.begun, total=progress.total, description=now)
            if not console.is_terminal and time.monotonic() - said > _EVERY:
                said = time.monotonic()
                console.print(f"{progress.begun} of {progress.total} runs begun; {now}", highlight=False, markup=False)

        result = run_grid(config, track=track, told=told)
    for line in summary(result):
        console.print(line, highlight=False, soft_wrap=True)
    return result


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
