"""How a command ends that ran methods or reads what became of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from bench.records.record import Record

if TYPE_CHECKING:
    from rich.console import Console


def end_with_outcome(records: Iterable[Record], console: Console) -> None:
    """Say how many methods failed or were refused by design.

    Args:
        records: all that the command ran or read; what failed counts unless a later try of it did not.
        console: where to write.

    Raises:
        Exit: a method failed; with status 1.
    """
    last: dict[str, Record] = {}
    for record in sorted(records, key=_attempt):
        last[_stem(record)] = record
    for status, meaning in (("refused", "refused by design"), ("failed", "failed; the same command tries them again")):
        rows = [record for record in last.values() if record.status == status]
        for record in rows:
            console.print(f"{status}: {record.title}: {record.reason}", soft_wrap=True, highlight=False, markup=False)
        if rows:
            console.print(f"{len(rows)} of {len(last)} {meaning}", soft_wrap=True, highlight=False)
    if any(record.status == "failed" for record in last.values()):
        raise typer.Exit(1)


def _stem(record: Record) -> str:
    """Return the id without the number of the attempt."""
    return re.sub(r"-\d+$", "", record.id)


def _attempt(record: Record) -> int:
    found = re.search(r"-(\d+)$", record.id)
    return int(found[1]) if found else 1
