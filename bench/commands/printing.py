"""What the verbs of the command line draw: the terminal, progress bars, and tables of costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console, OverflowMethod
from rich.table import Table

if TYPE_CHECKING:
    from methods.framework.inventory import Inventory
    from methods.framework.plan import Plan


def console(stderr: bool = False) -> Console:
    """Return the terminal to print on."""
    return Console(stderr=stderr)


def print_rows(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a line for each row, in columns; a terminal cuts lines to its width, a file gets them whole.

    Args:
        heads: names of the columns.
        rows: cells.
    """
    out = console()
    widths = [max(len(line[column]) for line in (heads, *rows)) for column in range(len(heads))]
    for line in (heads, *rows):
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip()
        overflow: OverflowMethod = "ellipsis" if out.is_terminal else "ignore"
        out.print(text, markup=False, highlight=False, no_wrap=True, overflow=overflow, crop=out.is_terminal)


def print_ending(out: Console, places: Mapping[str, object], steps: Sequence[tuple[str, str]]) -> None:
    """Print where results lie and what to type next.

    Args:
        out: where to write.
        places: files and folders, by what they hold.
        steps: commands, and what each does.
    """
    width = max((len(name) for name in places), default=0)
    out.print()
    for name, place in places.items():
        out.print(f"{name:<{width}}  {place}", markup=False, highlight=False, soft_wrap=True)
    for number, (command, what) in enumerate(steps):
        lead = "next:" if number == 0 else "     "
        out.print(f"{lead} `{command}` {what}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function that draws done out of total, and the time left; without a terminal the stage is one line."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    out = console()
    if not out.is_terminal:
        say_stage(title)
        yield lambda done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def say_stage(title: str) -> None:
    """Say that a stage begins, beside what is printed, so that a file of results holds these alone."""
    console(stderr=True).print(f"{title} ...", markup=False, highlight=False)


def print_cost(inventory: Inventory, plan: Plan) -> None:
    """Print what the plan's checkpoint costs beside the model that ``inventory`` describes."""
    from methods.framework.cost import cost, cost_of

    before, after = cost_of(inventory), cost(plan.normalised(inventory), inventory)
    table = Table("quantity", "source", "compressed", "removed")
    for name, value in asdict(before).items():
        own = getattr(after, name)
        table.add_row(name, f"{value:,}", f"{own:,}", f"{1 - own / value:.1%}" if value else "")
    console().print(table)
