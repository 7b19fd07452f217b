"""``moebench solve``: the best plans of a table within budgets, and the frontier."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from bench.commands.printing import console

if TYPE_CHECKING:
    from sweeps.solving.limits import Limit
    from sweeps.solving.solve import Solution, Solutions
    from sweeps.solving.table import Table

KEPT = "files that were written are whole; the same command writes them all again"
"""Said on Ctrl-C."""
POINTS = 2000
"""Rows of the frontier's file."""


def solve(
    file: Annotated[Path, typer.Argument(help="table of a sweep")],
    budget: Annotated[
        list[str],
        typer.Option(help="quantity=limit: bytes=0.5 (share of the source's), bytes=50%, bytes=12GB; may be repeated"),
    ] = [],  # noqa: B006  # typer reads it
    best: Annotated[int, typer.Option(min=1, max=1000, help="solutions wanted")] = 20,
    frontier: Annotated[
        bool, typer.Option("--frontier", help="write the least damage of every size too (CSV, PNG, SVG)")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="folder for plans and the frontier")] = None,
) -> None:
    """Print and write the best plans of a table; no model is opened."""
    from methods.framework.errors import ConfigError
    from sweeps.solving import solve as solving
    from sweeps.solving.limits import parse_limit
    from sweeps.solving.table import read_table

    if not budget and not frontier:
        raise ConfigError("nothing to solve: name a limit (--budget bytes=0.5), or ask for all sizes (--frontier)")
    if frontier and out is None:
        raise ConfigError("--frontier writes files: name a folder for them (--out FOLDER)")
    table = read_table(file)
    limits = [parse_limit(text, table.source) for text in budget]
    if table.unscored:
        every = sum(len(unit.options) for unit in table.units)
        console().print(f"{table.unscored} of {every} options have not been measured and are left out")
    found = solving.solve(table, limits, best) if limits else None
    if found is not None:
        _print(table, found)
        if out is not None:
            _write_plans(out, table, limits, found)
        else:
            console().print("to write the plans, name a folder (--out FOLDER)")
    if frontier and out is not None:
        for quantity in dict.fromkeys(limit.quantity for limit in limits) or (table.ordered_by,):
            _write_frontier(out, table, quantity, () if found is None else found.solutions[:1])


def _print(table: Table, found: Solutions) -> None:
    """Print damage and sizes of each solution, then the options by layer."""
    from rich.table import Table as Drawn

    from sweeps.solving import shown

    names = list(shown.shares(table, found.solutions[0]))
    drawn = Drawn("", "predicted damage", f"predicted {table.objective}", *(f"{name} kept" for name in names))
    for rank, one in enumerate(found.solutions, start=1):
        kept = [f"{share:.1%}" for share in shown.shares(table, one).values()]
        drawn.add_row(str(rank), f"{one.damage:.5g}", f"{table.predicted(one.damage):.5g}", *kept)
    console().print(drawn)
    console().print(f"{shown.heading(table)} by layer:", highlight=False)
    for rank, one in enumerate(found.solutions, start=1):
        console().print(f"{rank:3} {shown.line(table, one.levels)}", soft_wrap=True, highlight=False, markup=False)
    if found.gap:
        console().print(
            f"not proved: another plan may be better than the last of these by up to {found.gap:.3g}", highlight=False
        )


def _write_plans(out: Path, table: Table, limits: list[Limit], found: Solutions) -> None:
    """Write each solution as a plan whose provenance names study, table, budget and prediction."""
    from bench.store.store import write_json

    budget = {limit.quantity: limit.of(table.source) / max(table.source[limit.quantity], 1) for limit in limits}
    for rank, one in enumerate(found.solutions, start=1):
        provenance = {
            "title": f"Solution {rank}",
            "sweep": table.study,
            "model": table.model,
            "table": table.digest,
            "budget": budget,
            "levels": list(one.levels),
            "predicted": {"damage": one.damage, table.objective: table.predicted(one.damage)},
            "sizes": one.sizes,
        }
        write_json(out / f"plan-{rank:02}.json", {**table.plan(one.levels).document(), "provenance": provenance})
    last = f"plan-{len(found.solutions):02}.json"
    told = f"{out}: plan-01.json" if len(found.solutions) == 1 else f"{out}: plan-01.json to {last}"
    console().print(f"{told}; see one with `moebench cost {table.model} {out}/plan-01.json`", soft_wrap=True)


def _write_frontier(out: Path, table: Table, quantity: str, solutions: tuple[Solution, ...]) -> None:
    from bench.store.atomic import write_atomically
    from sweeps.solving.figure import draw
    from sweeps.solving.shown import rows_as_csv
    from sweeps.solving.solve import frontier

    found = frontier(table, quantity, POINTS)
    name = f"frontier_{quantity}"
    write_atomically(out / f"{name}.csv", rows_as_csv(table, found))
    for kind, content in draw(table, found, solutions).items():
        write_atomically(out / f"{name}.{kind}", content)
    slack = found.slack / max(table.source[quantity], 1)
    rounded = (
        f"; sizes were rounded, so a plan may do as well as a point that is up to {slack:.2%} of the source larger"
        if found.slack
        else ""
    )
    console().print(
        f"{out}: {name}.csv, .png and .svg, {len(found.solutions)} points{rounded}", soft_wrap=True, highlight=False
    )
