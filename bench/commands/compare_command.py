"""``moebench compare``: two records, item by item."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bench.commands.printing import console, print_rows


def compare(
    first: Annotated[str, typer.Argument(help="id of a record or its beginning, or a record's file")],
    second: Annotated[str, typer.Argument(help="the record that is compared with it")],
    store: Annotated[Path, typer.Option(help="store that the records lie in")] = Path("runs"),
) -> None:
    """Print, for every score of both on the same items, what the second makes of it less what the first does."""
    from bench.evaluation.paired import compare as paired
    from bench.evaluation.stored_items import stored_items
    from bench.records.run_contents import Beginning
    from bench.records.stored import stored_record

    out = console()
    (one, home), (other, its_home) = stored_record(first, store), stored_record(second, store)
    for letter, record in (("A", one), ("B", other)):
        told = f"{letter}  {record.id}  {Beginning.of(record).name}"
        out.print(told, markup=False, highlight=False, soft_wrap=True)
    items, its_items = stored_items(home / "items" / one.id), stored_items(its_home / "items" / other.id)
    digests = {(score.task, score.metric, score.filter): score for score in one.scores}
    rows: list[tuple[str, ...]] = []
    left: list[str] = []
    for score in other.scores:
        key = (score.task, score.metric, score.filter)
        before = digests.get(key)
        if before is None:
            continue
        if before.digest != score.digest:
            left.append(f"{score.task} {score.metric}: scored on other items or under another protocol")
        elif key not in items or key not in its_items:
            left.append(f"{score.task} {score.metric}: its items are not in the store")
        else:
            pair = paired(items[key], its_items[key])
            difference = f"{pair.difference:+.4f} [{pair.low:+.4f}, {pair.high:+.4f}]"
            cells = (score.task, score.metric, f"{before.value:.4f}", f"{score.value:.4f}", difference)
            rows.append((*cells, f"{pair.p:.3g}", str(score.n)))
    if rows:
        print_rows(("task", "metric", "A", "B", "B less A, 95 %", "p", "n"), rows)
    for reason in left:
        out.print(f"not compared: {reason}", markup=False, highlight=False, soft_wrap=True)
    if not rows:
        out.print("no score of both on the same items", highlight=False)
        raise typer.Exit(1)
