"""``moebench status``: what lies in a store, what became of it and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer

from bench.commands.printing import console, print_rows


def status(
    store: Annotated[Path, typer.Argument(help="store that runs, grids and sweeps wrote")] = Path("runs"),
) -> None:
    """Print one line for each record, then why some failed or were refused, sweeps and grids."""
    from bench.records.record import read_records
    from bench.records.run_contents import Beginning
    from bench.records.stored import records_folder

    out = console()
    found = list(read_records(records_folder(store)))
    rows = [
        (
            record.id,
            Beginning.of(record).name,
            record.status,
            "" if record.ratios is None else f"{1 - record.ratios.bytes:.0%}",
            str(len(record.scores)),
            record.created[:16],
        )
        for record in sorted(found, key=lambda one: (one.model.name, one.created))
    ]
    print_rows(("record", "what", "status", "bytes left", "scores", "made"), rows)
    counts = Counter(record.status for record in found)
    out.print(f"\n{len(found)} records: " + ", ".join(f"{count} {name}" for name, count in sorted(counts.items())))
    for record in found:
        if record.reason:
            told = f"{record.id} {record.status}: {record.reason}"
            out.print(told, soft_wrap=True, highlight=False, markup=False)
    for kind in ("sweeps", "grids"):
        names = sorted(path.name for path in (store / kind).glob("*") if path.is_dir())
        if names:
            out.print(f"{kind}: {', '.join(names)}", soft_wrap=True, highlight=False, markup=False)
    if found:
        told = f"next: `moebench show {found[0].id} --store {store}`, or `moebench report {store}` for the leaderboard"
        out.print(told, soft_wrap=True, highlight=False, markup=False)
