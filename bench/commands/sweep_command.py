"""``moebench sweep``: search a method's knobs under a size budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.library_log import library_log
from bench.commands.options import DEFAULT_STORE, StoreOption, TrackOption
from bench.commands.printing import console, print_ending

KEPT = "finished trials are kept in the study; the same command goes on with the next one"
"""Said on Ctrl-C."""


def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file of the study")],
    revision: Annotated[str | None, typer.Option(help="hub revision of the model, instead of the file's")] = None,
    store: StoreOption = DEFAULT_STORE,
    track: TrackOption = None,
) -> None:
    """Run the study of a file, or go on with it; exit with 1 where a trial failed."""
    from bench.commands.live import tracker_of
    from bench.commands.promote_command import promote_study
    from sweeps.launch import run_from_command_line
    from sweeps.sweep_config import load_sweep

    config, tracker = load_sweep(file), tracker_of(track, store)
    if revision is not None:
        config = config.model_copy(update={"revision": revision})
    with library_log(store, console()) as noise:
        result = run_from_command_line(config, store, tracker)
    if result.front and config.promote is not None:
        promote_study(config.name, store, track)
    else:
        where = "" if store == DEFAULT_STORE else f" --store {store}"
        what = "runs the best trial, with `--top N` the N best" if result.best else "runs the front"
        steps = [(f"moebench promote {config.name}{where}", what)] if result.front else []
        table = result.folder / "table.json"
        if table.exists():
            steps.append((f"moebench solve {table} --budget bytes=SHARE", "the best plans within another budget"))
        print_ending(console(), {"study": result.folder, **noise.place()}, steps)
    if result.count("failed"):
        raise typer.Exit(1)
