"""What the methods of records are like as they come: their knobs where nothing is set, and the paper that they follow."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from methods.framework.errors import MoebenchError
from methods.registry import method_class


@functools.cache
def default_knobs(method: str | None) -> Mapping[str, Any]:
    """Return the knobs of a method where nothing is set; empty where no method of that name is installed."""
    try:
        return {} if method is None else method_class(method)().knobs
    except (MoebenchError, ValidationError):
        return {}


@functools.cache
def source_of(method: str) -> str:
    """Return the paper that a method follows; empty where no method of that name is installed."""
    try:
        return method_class(method).source if method else ""
    except MoebenchError:
        return ""
