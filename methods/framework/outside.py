"""What comes from outside: files that anyone may have written, read strictly and within bounds.

Whatever is wrong with them, a reader gets one of our errors, at once: a pipe or device that would never answer, a file too
long to be what it should be, bytes that are no text, brackets nested too deeply, numbers that no JSON has, a key given twice.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, NoReturn

from methods.framework.errors import MoebenchError

LONGEST = 256 << 20
"""Bytes of the longest text file that is read whole; indexes of the largest published models have a tenth of it."""
DEEPEST = 64
"""Brackets within brackets; configs and plans have fewer than ten."""

Kind = type[MoebenchError]


def open_regular(path: Path, kind: Kind, remedy: str = "") -> int:
    """Return a descriptor, to be closed by the caller, of a file that is a file: no pipe, no device, no folder.

    Args:
        path: the file; links are followed.
        kind: class of the error.
        remedy: what the user can do, the end of the message.

    Raises:
        MoebenchError: of class ``kind``: it cannot be opened, or is something else.
    """
    try:
        # A pipe without a writer would hold up a plain open for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise kind(_said(f"cannot read {path}: {reason}", remedy)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise kind(_said(f"{path} is not a file but a folder, a pipe or a device", remedy))
    return descriptor


def read_bytes(path: Path, kind: Kind, remedy: str = "", longest: int = LONGEST) -> bytes:
    """Return the content of a file.

    Args:
        path: the file.
        kind: class of the error.
        remedy: what the user can do, the end of the message.
        longest: bytes above which the file is refused unread.

    Raises:
        MoebenchError: of class ``kind``: it cannot be read, is no file, or is longer.
    """
    with os.fdopen(open_regular(path, kind, remedy), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > longest:
            raise kind(_said(f"{path} has {size} bytes, more than the {longest} that such a file may have", remedy))
        try:
            return file.read()
        except OSError as error:
            raise kind(_said(f"cannot read {path}: {error.strerror}", remedy)) from error


def read_text(path: Path, kind: Kind, remedy: str = "", longest: int = LONGEST) -> str:
    """Return the content of a UTF-8 file, without a byte order mark.

    Args:
        path: the file.
        kind: class of the error.
        remedy: what the user can do, the end of the message.
        longest: bytes above which the file is refused unread.

    Raises:
        MoebenchError: of class ``kind``: as for ``read_bytes``, and where the bytes are no UTF-8.
    """
    try:
        return read_bytes(path, kind, remedy, longest).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise kind(_said(f"{path} is not text in UTF-8 (byte {error.start})", remedy)) from error


def read_json(path: Path, kind: Kind, remedy: str = "", infinite: bool = False) -> Any:
    """Return the values of a JSON file.

    Args:
        path: the file.
        kind: class of the error.
        remedy: what the user can do, the end of the message.
        infinite: as for ``parse_json``.

    Raises:
        MoebenchError: of class ``kind``: as for ``read_text`` and ``parse_json``.
    """
    return parse_json(read_text(path, kind, remedy), str(path), kind, remedy, infinite)


def parse_json(text: str | bytes, what: str, kind: Kind, remedy: str = "", infinite: bool = False) -> Any:
    """Return the values of a JSON text.

    Args:
        text: the text.
        what: where it comes from, the beginning of the message.
        kind: class of the error.
        remedy: what the user can do, the end of the message.
        infinite: whether ``Infinity`` may stand for a number, as Python's own writer has it in configs.

    Raises:
        MoebenchError: of class ``kind``: not JSON, nested more deeply than ``DEEPEST``, with NaN or infinities, or with a key
            that is given twice in one object.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8-sig")
        values = json.loads(text, object_pairs_hook=_object, parse_constant=_infinity if infinite else _constant)
    except RecursionError as error:
        raise kind(_said(f"{what} has brackets nested more than {DEEPEST} deep", remedy)) from error
    except ValueError as error:
        raise kind(_said(f"{what} is not valid JSON: {error}", remedy)) from error
    level = [values] if isinstance(values, (dict, list)) else []
    for _ in range(DEEPEST):
        inside = (one.values() if isinstance(one, dict) else one for one in level)
        level = [inner for held in inside for inner in held if isinstance(inner, (dict, list))]
    if level:
        raise kind(_said(f"{what} has brackets nested more than {DEEPEST} deep", remedy))
    return values


def an_object(value: Any, what: str, kind: Kind, remedy: str = "") -> dict[str, Any]:
    """Return ``value``, which has to be a JSON object.

    Args:
        value: what was read.
        what: where it comes from, the beginning of the message.
        kind: class of the error.
        remedy: what the user can do, the end of the message.

    Raises:
        MoebenchError: of class ``kind``: it is something else.
    """
    if not isinstance(value, dict):
        raise kind(_said(f"{what} holds {_named(value)}, not a JSON object", remedy))
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is given twice")
    return found


def _infinity(name: str) -> float:
    return _constant(name) if name == "NaN" else float(name)


def _constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _named(value: Any) -> str:
    if value is None:
        return "null"
    return f"a {type(value).__name__}"


def _said(message: str, remedy: str) -> str:
    return f"{message}; {remedy}" if remedy else message
