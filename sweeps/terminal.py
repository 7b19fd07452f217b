"""A sweep in the terminal: one line for each trial, then the best ones and where they lie."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from bench.records.depth_profile import depth_profile
from sweeps.final import told
from sweeps.outcome import SweepResult, TrialRow, read_choice
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig


def show_sweep(config: SweepConfig, store: Path, console: Console) -> SweepResult:
    """Run a sweep and show its progress and its outcome.

    Args:
        config: the sweep.
        store: folder of the store.
        console: where to write.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"sweep {config.name}: {config.title}", total=config.trials)

        def tell(row: TrialRow) -> None:
            bar.console.print(line(row), highlight=False, markup=False, soft_wrap=True)
            if row.state == "complete":
                bar.advance(task)

        scored: TaskID | None = None

        def advance(done: int, number: int) -> None:
            nonlocal scored
            scored = bar.add_task("score table", total=number) if scored is None else scored
            bar.update(scored, completed=done)

        result = run_sweep(config, store=store, progress=tell, advance=advance)
        bar.update(task, completed=result.count("complete"))
    console.print(table(result, config))
    if (choice := read_choice(result.folder)) is not None:
        for told_line in told(choice):
            console.print(told_line, highlight=False, markup=False, soft_wrap=True)
    shown = ("complete", *(("pruned",) if result.count("pruned") else ()), "refused", "failed")
    counts = ", ".join(f"{result.count(state)} {state}" for state in shown)
    console.print(f"{counts}. Plans of the front, trials.csv and the study: {result.folder}", soft_wrap=True)
    return result


def line(row: TrialRow) -> str:
    """Return one trial in one line."""
    scores = "  ".join(f"{name} {value:.5g}" for name, value in row.scores.items())
    knobs = " ".join(f"{name}={_short(value)}" for name, value in row.knobs.items())
    same = f"  (plan of trial {row.same_as})" if row.same_as is not None else ""
    told = f"{scores}  {knobs}{same}" if row.state == "complete" else f"{row.state}: {row.reason}"
    return f"trial {row.number:4d}  {told}"


def table(result: SweepResult, config: SweepConfig) -> Table:
    """Return the best trial, or the Pareto front, as a table."""
    title = "best trial" if len(config.objectives) == 1 else "Pareto front"
    shown = Table(title=f"{result.name}: {title}")
    for name in ("trial", *config.labels, "knobs", "plan"):
        shown.add_column(name, overflow="fold")
    for row in sorted(result.front, key=lambda row: tuple(row.scores.values())):
        knobs = " ".join(f"{name}={_short(value)}" for name, value in row.knobs.items())
        scores = [f"{row.scores[label]:.5g}" for label in config.labels]
        shown.add_row(str(row.number), *scores, knobs, str(row.plan)[:16])
    return shown


def _short(value: object) -> str:
    """Return a knob's value with three digits; knots joined by ``/``, as `moebench run` takes them, many layers by their mean."""
    if isinstance(value, (list, tuple)):
        return depth_profile(value) or "/".join(_short(item) for item in value)
    return f"{value:.3g}" if isinstance(value, float) else str(value)
