"""``moebench report``: leaderboard, tables and figures from records."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.printing import console


def report(
    stores: Annotated[list[Path], typer.Argument(help="stores, or folders of records")],
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("report"),
    title: str = "moebench leaderboard",
    floor: Annotated[float, typer.Option(help="recovery below which a row is marked")] = 0.9,
) -> None:
    """Write the report and print where it lies; exit with 1 where a method failed and no later try completed."""
    from bench.commands.outcome import end_with_outcome
    from bench.library.reporting import report as write

    written = write(stores, out, title=title, floor=floor)
    for message in written.messages:
        console().print(message)
    for path in (written.page, written.markdown, written.csv, written.scores, written.latex):
        console().print(path, soft_wrap=True)
    if written.figures:
        console().print(written.figures[0].parent, soft_wrap=True)
    end_with_outcome(written.records, console())
