"""``moebench check``: the laws of a method on every tiny architecture."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from bench.commands.options import method_names
from bench.commands.printing import console


def check(
    method: Annotated[
        str, typer.Argument(help="name of a method, also of another distribution", autocompletion=method_names)
    ],
    family: Annotated[list[str], typer.Option(help="only this architecture; may be repeated")] = [],  # noqa: B006  # typer reads it
    full: Annotated[
        bool, typer.Option("--full", help="all steps of a method that searches long, which takes minutes")
    ] = False,
) -> None:
    """Print the outcome of each law; exit with 1 where one is broken."""
    from bench.laws import check as laws

    marks = {"passed": "[green]passed[/]", "refused": "[yellow]refused[/]", "failed": "[bold red]failed[/]"}
    table = Table("law", "title", "architecture", "outcome", "detail")
    failed = 0
    for outcome in laws(method, tuple(family), full):
        failed += outcome.status == "failed"
        table.add_row(str(outcome.law), outcome.title, outcome.family, marks[outcome.status], outcome.detail)
    console().print(table)
    console().print(f"{failed} laws broken" if failed else f"{method} obeys every law")
    if failed:
        raise typer.Exit(1)
