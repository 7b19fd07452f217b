"""``moebench push``: a written checkpoint goes to the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.printing import console

KEPT = "what was uploaded is kept; the same command with --update goes on"
"""Said on Ctrl-C."""


def push(
    folder: Annotated[Path, typer.Argument(help="of a checkpoint that moebench wrote")],
    repository: Annotated[str, typer.Argument(help="OWNER/NAME on the hub")],
    public: Annotated[
        bool, typer.Option("--public", help="let everyone see a new repository; else its owner alone")
    ] = False,
    update: Annotated[
        bool, typer.Option("--update", help="add a commit to a repository that is there already")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show files and sizes, and send nothing")] = False,
) -> None:
    """Show the files, and upload them unless that is all that was asked."""
    from rich.table import Table

    from bench.cards.push import check_name, files_to_push
    from bench.cards.push import push as upload

    check_name(repository)
    files = files_to_push(folder)
    table = Table("file", "bytes", title=f"{folder} -> {repository} ({'public' if public else 'private'})")
    for name, size in files.items():
        table.add_row(name, f"{size:,}")
    table.add_row("in all", f"{sum(files.values()):,}")
    console().print(table)
    if dry_run:
        console().print("nothing was sent; without --dry-run these files are")
        return
    console().print(f"pushed: {upload(folder, repository, public=public, update=update)}", soft_wrap=True)
