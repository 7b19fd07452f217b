"""The leaderboard and the running table in a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table

from analysis.formatting import NONE, clock_time, known
from analysis.separation import best_quality
from analysis.summary import failures, messages
from analysis.table import Row, boards, fields_of, text_of

_COMPACT = ("rank", "method", "keep %", "size", "average %", "retention %", "Δ to base, points", "p", "decode ×")
_NARROW = ("rank", "method", "average %", "retention %", "size")


def print_leaderboard(frame: pd.DataFrame, console: Console | None = None) -> None:
    """Print one table a board, then the runs that did not complete, then what a reader should know.

    Args:
        frame: one row a run (``analysis.frame.frame``).
        console: where to print; standard output where None.
    """
    target = console or Console()
    wanted = _COMPACT if target.width >= 110 else _NARROW
    for heading, rows in boards(frame) if len(frame) else ():
        fields = [field for field in fields_of(rows) if field.head in wanted]
        table = Table(title=escape(heading), title_justify="left", title_style="bold", header_style="bold", box=None)
        for field in fields:
            table.add_column(
                field.head, justify="left" if field.head == "method" else "right", no_wrap=field.head != "method"
            )
        first = best_quality([row for row in rows if known(row["rank"])])
        for row in rows:
            table.add_row(*(escape(field.text(row)) for field in fields), style=_style(row, first))
        target.print(table)
        target.print()
    for model, method, status, reason in failures(frame).rows:
        target.print(f"[yellow]{status}[/] {escape(model)}, {escape(method)}: {escape(reason)}")
    for message in messages(frame):
        target.print(f"[yellow]{escape(message)}[/]")
    if len(frame) and frame["rank"].notna().any():
        target.print(
            "≈ within noise of the next rank · ? next rank on other seeds · ▼ retention below the floor · "
            "† survives Holm within model "
            "and share · green: separated as the best · intervals 95 %",
            style="dim",
        )


def _style(row: Row, first: Row | None) -> str:
    if row["is_base"]:
        return "dim"
    return "bold green" if row is first else "yellow" if row["below_floor"] is True else ""


ENDED = ("complete", "refused", "failed", "cancelled")
"""How a run may end."""


@dataclass(frozen=True)
class LiveRow:
    """One run while a job progresses.

    Args:
        stage: what runs now, or how it ended: ``waiting``, ``calibrate``, ..., ``complete``, ``refused``, ``failed``.
        share: how much of the stage is done, 0 to 1, where that is known.
        average: average over tasks, 0 to 1, once known.
        retention: average over the base's, once known.
        seconds: that were worked on it so far.
        left: seconds that it may still take, where something tells them.
        note: a reason or a detail.
    """

    model: str
    method: str
    stage: str
    share: float | None = None
    average: float | None = None
    retention: float | None = None
    seconds: float | None = None
    left: float | None = None
    note: str = ""


_STAGES = {"complete": "green", "waiting": "dim", "refused": "yellow", "failed": "red", "cancelled": "yellow"}
_SCORED_FROM, _NOTED_FROM = 90, 110
"""Columns of a terminal from which the scores of rows, and their details, stand in the table."""


def total_line(ended: int, rows: int, share: float, spent: str, left: float | None) -> Table:
    """Return the line above a live table: a bar for all rows together.

    Args:
        ended: rows that ended.
        rows: all rows.
        share: of all work, 0 to 1.
        spent: time so far, in words.
        left: seconds that it may still take, None where nothing tells them.
    """
    line = Table.grid(padding=(0, 1))
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    line.add_column(no_wrap=True)
    rest = "" if left is None or ended == rows else f", about {clock_time(left)} left"
    line.add_row(
        f"[bold]{ended} of {rows} rows[/]",
        ProgressBar(completed=100 * share, width=30),
        f"{share:.0%} in {spent}{rest}",
    )
    return line


def live_table(rows: Sequence[LiveRow], height: int = 24, width: int = 200) -> Table:
    """Return a table of ``rows`` for ``rich.live.Live``: those that run or ended last, where not all have room.

    Rows that wait are cut first, then the first of those that ended; a last line counts what is not shown.

    Args:
        rows: all runs of the job.
        height: most lines.
        width: columns of the terminal; a narrow one has no room for scores and details.
    """
    shown = list(rows)
    for stages in (("waiting",), ENDED):
        surplus = len(shown) - height
        if surplus > 0:
            cut = [row for row in shown if row.stage in stages]
            cut = cut[-surplus:] if "waiting" in stages else cut[:surplus]
            gone = {id(row) for row in cut}
            shown = [row for row in shown if id(row) not in gone]
    scored, noted = width >= _SCORED_FROM, width >= _NOTED_FROM
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("model", no_wrap=True, overflow="ellipsis")
    table.add_column("method", no_wrap=True, overflow="ellipsis")
    table.add_column("stage", no_wrap=True, min_width=9)
    for head in ("done", *(("average", "retention") if scored else ()), "time", "left"):
        table.add_column(head, justify="right", no_wrap=True, min_width=5)
    if noted:
        table.add_column("", no_wrap=True, overflow="ellipsis")
    for row in shown:
        colour = _STAGES.get(row.stage, "cyan")
        table.add_row(
            escape(row.model),
            escape(row.method),
            f"[{colour}]{escape(row.stage)}[/]",
            "" if row.share is None else f"{row.share:.0%}",
            *((_percent(row.average), _percent(row.retention)) if scored else ()),
            "" if row.seconds is None else clock_time(row.seconds),
            "" if row.left is None else clock_time(row.left),
            *((escape(text_of(row.note)),) if noted else ()),
        )
    if len(shown) < len(rows):
        done = sum(row.stage in ENDED for row in rows)
        table.caption = f"{done} of {len(rows)} runs ended, {len(rows) - len(shown)} not shown"
    return table


def _percent(value: float | None) -> str:
    return NONE if value is None else f"{100 * value:.1f} %"
