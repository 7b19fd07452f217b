"""Where the items of a record lie: in its store, under ``items/<id>``, a file for each task."""

from __future__ import annotations


def file_name(task: str) -> str:
    """Return the name, without its ending, of the file that holds the items of ``task``."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in task)
