"""A text file in pieces, in an order that a seed chooses."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path

from methods.framework.errors import ConfigError
from methods.framework.outside import read_text

LONGEST = 1 << 40
"""Bytes of the longest text, which may be a large part of a training set."""
_LARGEST = 1 << 16
"""Characters of the longest piece, but for a word that is longer."""
_PIECES = 1000
"""Pieces that a text is cut into, where they then hold a window and are no longer than the longest: so few seeds begin alike."""
_PER_TOKEN = 8
"""Characters that hold a token in nearly all texts, so that a window seldom spans two pieces."""


def pieces(path: Path, seed: int, length: int) -> Iterator[str]:
    """Yield a text file in pieces that end at line ends, or between words of lines that are longer than a piece.

    A piece is a thousandth of the text, at least what a window is likely to need, and at most 64 Ki characters.

    Args:
        path: the file, in UTF-8.
        seed: chooses the order.
        length: tokens of a window.
    """
    text = read_text(path, ConfigError, "convert it to UTF-8", LONGEST)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    wanted = min(_LARGEST, max(len(text) // _PIECES, _PER_TOKEN * length))
    found: list[list[str]] = [[]]
    size = 0
    for part in _parts(text, wanted):
        if size >= wanted:
            found.append([])
            size = 0
        found[-1].append(part)
        size += len(part)
    random.Random(f"corpus {seed}").shuffle(found)
    return ("".join(piece) for piece in found)


def _parts(text: str, wanted: int) -> Iterator[str]:
    """Yield the lines of a text, those longer than a piece word by word, each with the blanks before it."""
    for line in text.splitlines(keepends=True):
        yield from re.findall(r"\s*\S+|\s+$", line) if len(line) > wanted else (line,)
