"""Values by name in one line, ``NAME=VALUE``, as options of the command line take them; YAML files may give them as a mapping."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator


def read_values(lines: Iterable[str]) -> dict[str, Any]:
    """Return the values by name: JSON where it is JSON, else text.

    Raises:
        ValueError: a line names nothing, or a name stands twice.
    """
    found: dict[str, Any] = {}
    for line in lines:
        name, equal, text = line.partition("=")
        if not equal or not name.strip().isidentifier():
            raise ValueError(f"{line!r} is no NAME=VALUE")
        if name.strip() in found:
            raise ValueError(f"{name.strip()} stands twice")
        try:
            found[name.strip()] = json.loads(text)
        except ValueError:
            found[name.strip()] = text
    return found


def _as_lines(value: Any) -> Any:
    return tuple(f"{name}={json.dumps(own)}" for name, own in value.items()) if isinstance(value, Mapping) else value


def _checked(lines: tuple[str, ...]) -> tuple[str, ...]:
    read_values(lines)
    return lines


NamedValues = Annotated[tuple[str, ...], BeforeValidator(_as_lines), AfterValidator(_checked)]
"""Lines ``NAME=VALUE``."""
