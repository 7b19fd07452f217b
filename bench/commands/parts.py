"""What the verbs of the command line share: options, progress bars, and tables of costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Argument(help="folder of a checkpoint, hub id, or the name of a pocket model")]
StoreOption = Annotated[Path, typer.Option(help="folder of records and cached artefacts")]
Knobs = Annotated[list[str], typer.Option("--set", help="knob=value of the method; may be repeated")]
CorpusOption = Annotated[str, typer.Option(help="text file, datasets:NAME, pocket[:domain], or a file of token ids")]
Sequences = Annotated[int, typer.Option(help="calibration windows")]
Length = Annotated[int, typer.Option(help="tokens of a calibration window")]
Device = Annotated[str, typer.Option(help="torch device; auto takes the GPU where there is one")]
DEFAULT_STORE = Path("runs")


def console(stderr: bool = False) -> Any:
    """Return the terminal to print on."""
    from rich.console import Console

    return Console(stderr=stderr)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that draws done out of total."""
    from rich.progress import Progress

    with Progress(transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def open_checkpoint(model: str, revision: str | None = None) -> Any:
    """Open the checkpoint that a user named."""
    from bench.checkpoint.checkpoint import Checkpoint

    return Checkpoint.open(model, revision)


def configured_method(name: str, knobs: list[str]) -> Any:
    """Return the method with the knobs that a user set."""
    from bench.settings.method_settings import parse_method

    return parse_method(f"{name}:{','.join(knobs)}").configured()


def read_plan(path: Path) -> Any:
    """Read a plan; PlanError if the file is missing or holds something else."""
    from methods.framework.errors import PlanError
    from methods.framework.plan import Plan

    try:
        return Plan.loads(path.read_bytes())
    except OSError as error:
        raise PlanError(f"cannot read {path}: {error.strerror}") from error


def print_cost(checkpoint: Any, plan: Any) -> None:
    """Print what the plan's checkpoint costs beside the source."""
    from dataclasses import asdict

    from rich.table import Table

    from methods.framework import cost as costs

    plan = plan.normalised(checkpoint.inventory)
    before, after = costs.cost_of(checkpoint.inventory), costs.cost(plan, checkpoint.inventory)
    table = Table("quantity", "source", "compressed", "removed")
    for name, value in asdict(before).items():
        own = getattr(after, name)
        table.add_row(name, f"{value:,}", f"{own:,}", f"{1 - own / value:.1%}" if value else "")
    console().print(table)
