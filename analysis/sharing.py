"""Records of many runs hold the same words over and over; here each is held once, so that thousands fit in memory."""

from __future__ import annotations

import sys
from typing import Any

from pydantic import BaseModel

from bench.records.record import Record


class Shared:
    """What the records that were passed so far hold alike."""

    def __init__(self) -> None:
        self._names: dict[frozenset[str], set[str]] = {}

    def __call__(self, record: Record) -> Record:
        """Return ``record`` itself, equal to what it was, with its texts and names of fields shared with earlier ones."""
        self._visit(record)
        return record

    def _visit(self, part: BaseModel) -> None:
        # pydantic keeps the names of the fields that were set, a set for each object: two thirds of the memory of a score.
        own = part.model_fields_set
        object.__setattr__(part, "__pydantic_fields_set__", self._names.setdefault(frozenset(own), own))
        held = vars(part)
        for name, value in held.items():
            held[name] = self._shared(value)

    def _shared(self, value: Any) -> Any:
        if isinstance(value, str):
            return sys.intern(value)
        if isinstance(value, BaseModel):
            self._visit(value)
        elif isinstance(value, tuple):
            for one in value:
                if isinstance(one, BaseModel):
                    self._visit(one)
        elif isinstance(value, dict):
            for key, one in value.items():
                value[key] = self._shared(one)
        return value
