"""``moebench sweep``: search a method's knobs under a size budget."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.options import DEFAULT_STORE, StoreOption

KEPT = "finished trials are kept in the study; the same command goes on with the next one"
"""Said on Ctrl-C."""


def sweep(
    file: Annotated[Path, typer.Argument(help="YAML file of the study")],
    store: StoreOption = DEFAULT_STORE,
) -> None:
    """Run the study of a file, or go on with it; exit with 1 where a trial failed."""
    from sweeps.launch import run_from_command_line

    if run_from_command_line(file, store).count("failed"):
        raise typer.Exit(1)
