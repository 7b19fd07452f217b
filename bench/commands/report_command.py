"""``moebench report``: leaderboard, tables and figures from records."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.printing import console, print_ending
from methods.framework.errors import ConfigError

KEPT = "the report is there as it was last written; the same command goes on"
"""Said on Ctrl-C."""
_LOOK = 1.0
"""Seconds between two looks at the folders of records."""


def report(
    stores: Annotated[list[Path], typer.Argument(help="stores, or folders of records")],
    out: Annotated[Path, typer.Option(help="folder to write to")] = Path("report"),
    title: Annotated[str, typer.Option(help="heading of the page")] = "moebench leaderboard",
    floor: Annotated[float, typer.Option(help="recovery below which a row is marked")] = 0.9,
    papers: Annotated[
        Path | None, typer.Option(help="folder with pages of `moebench paper NAME all`, which the page leads to")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="serve the page on this machine, and write it again as records come in")
    ] = False,
    port: Annotated[int, typer.Option(min=0, max=65535, help="with --watch: of the page; 0: any that is free")] = 8765,
) -> None:
    """Write the report and print where it lies; exit with 1 where a method failed and no later try completed."""
    from bench.commands.outcome import end_with_outcome
    from bench.library.reporting import report as write

    if watch and papers is not None:
        raise ConfigError("--papers is for a report in a folder, whose links reach other folders; leave out --watch")
    if watch:
        watch_stores(stores, out, title=title, floor=floor, port=port)
        return
    written = write(stores, out, title=title, floor=floor, papers=papers)
    for message in written.messages:
        console().print(message, markup=False, highlight=False, soft_wrap=True)
    places: dict[str, object] = {
        "page": written.page,
        "Markdown": written.markdown,
        "CSV": written.csv,
        "scores": written.scores,
        "LaTeX": written.latex,
    }
    if written.figures:
        places["figures"] = written.figures[0].parent
    again = f"moebench report {' '.join(map(str, stores))}"
    print_ending(console(), places, [(f"{again} --watch", "serves the page while records come in")])
    end_with_outcome(written.records, console())


def watch_stores(stores: list[Path], out: Path, *, title: str, floor: float, port: int) -> None:
    """Serve the page of some stores until Ctrl-C, and tell what comes in.

    Args:
        stores: stores, or folders of records.
        out: folder to write to.
        title: heading of the page.
        floor: recovery below which a row is marked.
        port: of the page.
    """
    from analysis.watching import Watched

    watched, terminal = Watched(stores, out, title=title, floor=floor), console()
    written = watched.refresh()
    with watched.served(port) as address:
        terminal.print(f"{address}  until Ctrl-C", markup=False, highlight=False)
        while True:
            if written is not None:
                told = f"{time.strftime('%H:%M:%S')}  {len(written.records)} records"
                terminal.print(told, markup=False, highlight=False)
            time.sleep(_LOOK)
            written = watched.refresh()
