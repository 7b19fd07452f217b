"""What lies beside records in a store: plans, and the items of scores.

Read for what opens below some rows of a page, never for a number of a table.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from analysis.protocol import Key, headline, key
from bench.records.item_files import file_name
from bench.records.plan_map import drawn_plan
from bench.records.record import Record

PLANS = 400
"""Rows of a page whose plans are shown; the others lie in the store."""

ITEMS = 4_000_000
"""Items of all rows that a page holds, one bit each."""

ITEM_ROWS = 300
"""Rows of a page that can be compared item by item; those that rank first."""


@dataclass(frozen=True)
class Beside:
    """Plans and items of some runs, by id.

    Args:
        plans: lines of the map of each plan.
        protocols: of the items, what two runs must share.
        items: for each run and place in ``protocols``, which items are right: the number of items, and a bit for each in base64.
    """

    plans: Mapping[str, tuple[str, ...]]
    protocols: tuple[Key, ...]
    items: Mapping[str, Mapping[int, tuple[int, str]]]


def beside(records: Sequence[Record], places: Mapping[str, Path]) -> Beside:
    """Read what lies beside ``records``, the first of them first, until a page has enough.

    Args:
        records: single runs, in the order of their importance.
        places: folder that each record was read from, by id; plans and items lie beside it, in ``plans`` and ``items``.
    """
    plans: dict[str, tuple[str, ...]] = {}
    protocols: dict[Key, int] = {}
    items: dict[str, Mapping[int, tuple[int, str]]] = {}
    left = ITEMS
    for record in records:
        store = places[record.id].parent
        if (
            record.plan
            and record.method
            and len(plans) < PLANS
            and (drawn := drawn_plan(store / "plans" / f"{record.plan}.json"))
        ):
            plans[record.id] = drawn
        if left > 0 and len(items) < ITEM_ROWS:
            own = _items(store / "items" / record.id, record)
            left -= sum(count for count, _ in own.values())
            if own and left >= 0:
                items[record.id] = {protocols.setdefault(one, len(protocols)): told for one, told in own.items()}
    return Beside(plans, tuple(protocols), items)


def _items(folder: Path, record: Record) -> dict[Key, tuple[int, str]]:
    """Return the right and wrong items of the headline scores of ``record``, where they lie in ``folder``."""
    found: dict[Key, tuple[int, str]] = {}
    for task, score in headline(record.scores).items():
        values = _values(folder / f"{file_name(task)}.json", score.metric, score.filter)
        if len(values) == score.n and set(values) <= {0.0, 1.0}:
            bits = np.packbits(np.asarray(values, dtype=bool)).tobytes()
            found[key(score)] = (score.n, base64.b64encode(bits).decode())
    return found


def _values(path: Path, metric: str, name: str) -> list[float]:
    """Return the values of one metric, by the order of the items; empty where the file does not hold them."""
    try:
        groups: Iterable[dict[str, Any]] = json.loads(path.read_bytes())
        for one in groups:
            if one["metric"] == metric and one["filter"] == name and one["statistic"] == "mean":
                return list(one["values"]) if len(set(one["weights"])) == 1 else []
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return []
