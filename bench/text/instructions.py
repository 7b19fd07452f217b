"""Instructions with their answers as text, by a template, for models that have no chat template of their own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from methods.framework.errors import ConfigError
from methods.framework.outside import parse_json, read_text

TEMPLATE = "### Instruction:\n{instruction}\n\n{?input}### Input:\n{input}\n\n{/input}### Response:\n{output}"
"""Template where none is given. What stands between ``{?input}`` and ``{/input}`` is left out where there is no input."""
_FIELDS = ("instruction", "input", "output")
_LONGEST = 1 << 40
"""Bytes of the longest file, which may be a large part of a training set."""


def instruction_texts(rest: str, seed: int) -> Iterator[str]:
    """Yield the text of each line of a file of JSON objects, in an order that the seed chooses.

    An object has ``instruction`` and ``output`` (or ``response``), and maybe ``input``.

    Args:
        rest: ``FILE`` or ``FILE:TEMPLATE``, the path of a template.
        seed: chooses the order.

    Raises:
        ConfigError: a line is no such object, or the template lacks instruction or output.
    """
    name, _, template_name = rest.partition(":")
    path = Path(name)
    template = read_text(Path(template_name), ConfigError) if template_name else TEMPLATE
    for field in ("instruction", "output"):
        if "{" + field + "}" not in template:
            raise ConfigError(
                f"template {template_name} does not hold {{{field}}}; it needs {{instruction}} and {{output}}, and may have "
                "{input}, with {?input} and {/input} around what is left out where there is none"
            )
    lines = [line for line in read_text(path, ConfigError, longest=_LONGEST).split("\n") if line.strip()]
    random.Random(f"corpus {seed}").shuffle(lines)
    for line in lines:
        yield filled(template, _fields(parse_json(line, f"a line of {path}", ConfigError), path))


def filled(template: str, fields: dict[str, str]) -> str:
    """Return ``template`` with ``fields``; what a field holds is text, even where it looks like a field."""
    before, opened, rest = template.partition("{?input}")
    inside, closed, after = rest.partition("{/input}")
    if opened and closed:
        template = before + (inside if fields["input"] else "") + after
    parts = [template]
    for name in _FIELDS:
        parts = [piece for part in parts for piece in _split(part, name)]
    values = {"{" + name + "}": fields[name] for name in _FIELDS}
    return "".join(values.get(part, part) for part in parts)


def _split(part: str, name: str) -> list[str]:
    """Return ``part`` cut around each place of a field."""
    mark = "{" + name + "}"
    pieces: list[str] = []
    for number, piece in enumerate(part.split(mark)):
        pieces += [mark] if number else []
        pieces.append(piece)
    return pieces


def _fields(row: Any, path: Path) -> dict[str, str]:
    """Return the texts of one object.

    Raises:
        ConfigError: it is no object, or lacks one.
    """
    found = dict(row) if isinstance(row, dict) else {}
    found.setdefault("output", found.get("response"))
    found["input"] = found.get("input") or ""
    if not all(isinstance(found.get(name), str) for name in _FIELDS):
        raise ConfigError(
            f"a line of {path} is {str(row)[:60]!r}; allowed: an object with the texts instruction and output (or response), and "
            "maybe input"
        )
    return {name: found[name] for name in _FIELDS}
