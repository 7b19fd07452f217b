"""One run of W&B for all records of a model in a group: the table, accuracy against bytes, before and after training."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.records.mirror import Tracker
from bench.records.record import Record
from bench.records.run_contents import Beginning, summary

_NUMBERS = ("average", "retention", "size/bytes", "size/share", "speed/decode_ratio", "speed/n")


def track_overview(records: Iterable[Record], tracker: Tracker) -> list[Path]:
    """Mirror what the records of each model and group say together; what was sent in the same state is not sent again.

    Args:
        records: of any models and groups; those that are not complete are left out.
        tracker: the mirror.

    Returns:
        The folders of what was sent.
    """
    sets: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        if record.status == "complete":
            sets.setdefault((record.group, record.model.name, record.model.content), []).append(record)
    found = []
    for (group, model, content), rows in sorted(sets.items()):
        rows.sort(key=lambda record: (record.method is not None, Beginning.of(record).name, record.id))
        identifier = _digest([group, content])[:16]
        begun = {
            "group": group,
            "id": identifier,
            "name": f"{model} · overview",
            "job_type": "overview",
            "tags": [rows[0].model.family],
            "config": {"model": model, "records": len(rows)},
        }
        mark = f"{identifier}-{_digest([record.id for record in rows])[:8]}"

        def filled(module: Any, run: Any, rows: list[Record] = rows) -> None:
            _fill(module, run, rows, tracker)

        folder = tracker.mirror(f"overview of {model}", mark, begun, filled)
        if folder is not None:
            tracker.remove_earlier(identifier, folder)
            found.append(folder)
    return found


def overview_rows(records: Sequence[Record], tracker: Tracker) -> list[list[Any]]:
    """Return a row for each record: setting, method, numbers, marks, and whether it was trained.

    Args:
        records: of one model and group.
        tracker: has the mean that tables show.
    """
    base = next((record for record in records if record.method is None), None)
    rows = []
    for record in records:
        numbers = summary(record, base, tracker.average)
        told = [numbers.get(name) for name in _NUMBERS]
        rows.append(
            [Beginning.of(record).name, record.title, *told, numbers.get("speed/marks"), record.recovery is not None]
        )
    return rows


def before_and_after(records: Sequence[Record], tracker: Tracker) -> Iterator[list[Any]]:
    """Yield setting, ``before`` or ``after``, and average for each plan that was scored without and with training.

    Args:
        records: of one model and group.
        tracker: has the mean that tables show.
    """
    plain = {record.plan: record for record in records if record.recovery is None and record.method is not None}
    for record in records:
        before = plain.get(record.plan)
        if record.recovery is None or before is None or tracker.average is None:
            continue
        for when, one in (("before", before), ("after", record)):
            value = tracker.average(one.scores)
            if value is not None:
                yield [f"{Beginning.of(record).name}: {when}", when, value]


def _fill(module: Any, run: Any, records: Sequence[Record], tracker: Tracker) -> None:
    columns = ["setting", "method", *_NUMBERS, "speed/marks", "trained"]
    table = module.Table(columns=columns, data=overview_rows(records, tracker), allow_mixed_types=True)
    logged: dict[str, Any] = {"records": table}
    drawn = [row for row in table.data if None not in (row[2], row[4])]
    if drawn:
        points = module.Table(columns=["bytes", "average", "setting"], data=[[row[4], row[2], row[0]] for row in drawn])
        logged["accuracy_against_bytes"] = module.plot.scatter(
            points, "bytes", "average", title="Accuracy against bytes"
        )
    pairs = list(before_and_after(records, tracker))
    if pairs:
        bars = module.Table(columns=["setting", "training", "average"], data=pairs)
        logged["training"] = module.plot.bar(bars, "setting", "average", title="Before and after training")
    run.log(logged)
    run.summary.update({"records": len(records)})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
