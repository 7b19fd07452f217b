"""``moebench papers``: the papers that are known, with what each table and figure needs."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import OverflowMethod
from rich.markup import escape

from bench.commands.printing import console


def papers(
    name: Annotated[str | None, typer.Argument(help="name of a paper; without it, all are listed")] = None,
) -> None:
    """Print the tables and figures of the papers: models, command, and cost at the size of the paper's models."""
    from sweeps.papers.estimate import FLOPS
    from sweeps.papers.overview import COLUMNS, models_of, overview, tasks_of
    from sweeps.papers.shelf import paper_names, read_paper

    out = console()
    for paper in map(read_paper, [name] if name else paper_names()):
        out.print(
            f"[bold]{escape(paper.name)}[/]  {escape(paper.file.title)}, {escape(paper.file.source)}", soft_wrap=True
        )
        lines = [COLUMNS, *overview(paper)]
        widths = [max(len(line[place]) for line in lines) for place in range(len(COLUMNS))]
        for line in lines:
            cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            overflow: OverflowMethod = "ellipsis" if out.is_terminal else "ignore"
            out.print(
                "  ".join(cells).rstrip(),
                markup=False,
                highlight=False,
                no_wrap=True,
                overflow=overflow,
                crop=out.is_terminal,
            )
        out.print(f"models: {models_of(paper)}", highlight=False, markup=False, soft_wrap=True)
        out.print(f"tasks, with their items: {tasks_of(paper)}", highlight=False, markup=False, soft_wrap=True)
        command = f"command: moebench paper {paper.name} NAME --model pocket|FOLDER|HUB-ID [--from STORE]\n"
        out.print(command, highlight=False, markup=False, soft_wrap=True)
    out.print(
        f"Hours follow from FLOPs alone, at {FLOPS / 1e12:.0f} TFLOP/s; the tokens of tasks are rough. "
        "Pocket models take minutes of a processor core.",
        highlight=False,
        soft_wrap=True,
    )
