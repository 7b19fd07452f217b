"""Errors of settings in the words of whoever wrote them: where it is wrong, what was found, what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

_WORDS = {
    "less_than_equal": "should be at most {le:g}",
    "greater_than_equal": "should be at least {ge:g}",
    "less_than": "should be less than {lt:g}",
    "greater_than": "should be more than {gt:g}",
    "multiple_of": "should be a multiple of {multiple_of:g}",
    "finite_number": "should be a finite number",
    "literal_error": "should be {expected}",
    "enum": "should be {expected}",
    "too_short": "should have {min_length} or more entries",
    "too_long": "should have {max_length} or fewer entries",
    "string_too_short": "should have {min_length} or more characters",
    "string_too_long": "should have {max_length} or fewer characters",
    "string_pattern_mismatch": "should look like {pattern}",
    "missing": "is missing",
    "extra_forbidden": "is not known here",
}
"""What is wrong, by the kind of error that pydantic names."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "decimal": "a number",
    "string": "text",
    "bool": "true or false",
    "path": "the path of a file or folder",
    "tuple": "a list",
    "list": "a list",
    "set": "a list",
    "frozen_set": "a list",
    "dict": "settings by name",
    "mapping": "settings by name",
    "model": "settings by name",
    "dataclass": "settings by name",
    "none": "left out",
}
"""What a value should be, by the beginning of such a kind (``int_parsing``, ``float_type``)."""
_UNTOLD = ("missing", "value_error", "assertion_error")
"""Kinds whose message tells what was found, or where nothing was."""


def wording(error: ValidationError, document: Any, under: str = "") -> str:
    """Return ``place: what is wrong, found what``; without a place where the whole is wrong.

    Of several problems the one is told that lies deepest in the document: where a value may have several forms, it is of the form
    that fits best.

    Args:
        error: what pydantic raised.
        document: what was read.
        under: key that the whole stands under, if any.
    """
    placed = [(place(one, document), one) for one in error.errors(include_url=False)]
    where, first = max(placed, key=lambda pair: len(pair[0]))
    where = [*filter(None, [under]), *where]
    found = "" if first["type"] in _UNTOLD else f", found {first['input']!r}"
    return f"{'.'.join(where)}{': ' if where else ''}{_told(first)}{found}"


def place(error: ErrorDetails, document: Any) -> list[str]:
    """Return the keys that lead to what is wrong, those alone that stand in the document, and one that is missing there.

    Pydantic names the forms that it tried in between.

    Args:
        error: one of what pydantic found.
        document: what was read.
    """
    keys: list[str] = []
    here = document
    for part in error["loc"]:
        if (isinstance(here, Mapping) and part in here) or (
            isinstance(part, int) and _is_list(here) and part < len(here)
        ):
            here = here[part]
        elif error["type"] == "missing" and part == error["loc"][-1]:
            pass
        else:
            continue
        keys.append(str(part))
    return keys


def _told(error: ErrorDetails) -> str:
    """Return what is wrong with one value."""
    kind = error["type"]
    if kind in _WORDS:
        return _WORDS[kind].format(**error.get("ctx", {}))
    message = error["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return message
    stem = next((one for one in sorted(_KINDS, key=len, reverse=True) if kind.startswith(f"{one}_")), None)
    return message if stem is None else f"should be {_KINDS[stem]}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
