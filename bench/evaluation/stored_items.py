"""Items of a record as they lie in its store."""

from __future__ import annotations

import json
from pathlib import Path

from bench.evaluation.items import Items, items_from
from methods.framework.errors import RecordError


def stored_items(folder: Path) -> dict[tuple[str, str, str], Items]:
    """Return the items in a folder by task, metric and filter; empty where there is no such folder.

    Raises:
        RecordError: a file there holds no items.
    """
    found: dict[tuple[str, str, str], Items] = {}
    for path in sorted(folder.glob("*.json")):
        try:
            some = [items_from(fields) for fields in json.loads(path.read_bytes())]
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise RecordError(
                f"{path} holds no items of a task ({error}); remove the record and run it again"
            ) from error
        found |= {one.key: one for one in some}
    return found
