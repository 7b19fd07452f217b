"""``moebench grid``: models by methods by shares by corpora by seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.library_log import library_log
from bench.commands.options import TrackOption
from bench.commands.printing import console, print_ending

KEPT = (
    "records of finished runs and the stages of unfinished ones are kept in the store; "
    "the same command goes on from there"
)
"""Said on Ctrl-C."""


def grid(
    file: Annotated[Path, typer.Argument(help="YAML file of models, methods, shares, corpora and seeds")],
    store: Annotated[Path | None, typer.Option(help="instead of the file's")] = None,
    revision: Annotated[str | None, typer.Option(help="hub revision of every model, instead of the file's")] = None,
    workers: Annotated[int | None, typer.Option(help="processes, instead of the file's")] = None,
    report: Annotated[Path | None, typer.Option(help="folder to write the study's page and figures to")] = None,
    track: TrackOption = None,
) -> None:
    """Run the grid of a file, or go on with it; exit with 1 where a run failed."""
    from bench.settings.strict import validated
    from sweeps.grid_config import GridConfig, load_grid
    from sweeps.grid_terminal import show_grid

    given = {"store": store, "revision": revision, "workers": workers}
    document = load_grid(file).model_dump() | {name: value for name, value in given.items() if value is not None}
    config = validated(document, GridConfig, str(file))
    with library_log(config.store, console()) as noise:
        result = show_grid(config, track, console())
    places: dict[str, object] = {"records": result.records}
    if report is not None:
        from analysis.study import study_page

        places["page"] = study_page(result.records, report).page
    places |= noise.place()
    page = f"moebench grid {file} --report FOLDER"
    steps = [(f"moebench report {config.store}", "writes the leaderboard page, tables and figures")]
    steps += [] if report is not None else [(page, "writes the page of a study; what was run is not run again")]
    print_ending(console(), places, [*steps, (f"moebench status {config.store}", "what the store holds")])
    if result.counts["failed"] or result.counts["cancelled"]:
        raise typer.Exit(1)
