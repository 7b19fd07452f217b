"""Streams of token ids cut into windows, each with the beginning that evaluation adds and with marks of what counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from bench.text.apart import Apart
from methods.framework.errors import ConfigError


class Marked(NamedTuple):
    """Token ids, and whether each of them counts; no marks at all where every token does."""

    ids: Sequence[int]
    marks: Sequence[bool] = ()


def opened(row: Sequence[int], opening: tuple[int, ...]) -> Sequence[int]:
    """Return a window of ids with its beginning, which it may have already."""
    first = len(opening)
    if not first or (isinstance(row, Sequence | np.ndarray) and tuple(row[:first]) == opening):
        return row
    return [*opening, *row]


def packed(
    pieces: Iterable[Marked],
    opening: tuple[int, ...],
    sequences: int,
    length: int,
    source: str,
    apart: Apart | None = None,
    passages: bool = False,
) -> list[Marked]:
    """Cut a stream into windows, each with its beginning, and stop when there are enough.

    Args:
        pieces: the stream; all of them have marks, or none. A beginning that is added does not count.
        opening: ids that each window begins with.
        sequences: windows that are wanted.
        length: tokens of a window.
        source: name of the stream, for messages.
        apart: what a window may not repeat.
        passages: whether windows that share a passage with it are passed over here, not documents before.

    Raises:
        ConfigError: the stream is too short.
    """
    windows: list[Marked] = []
    rest: list[int] = []
    marks: list[bool] = []
    for piece in pieces:
        rest.extend(piece.ids)
        marks.extend(piece.marks)
        place = 0
        while len(windows) < sequences:
            added = () if tuple(rest[place : place + len(opening)]) == opening else opening
            stop = place + length - len(added)
            if stop > len(rest):
                break
            window = Marked([*added, *rest[place:stop]], [*[False] * len(added), *marks[place:stop]] if marks else ())
            place = stop
            if not (passages and apart is not None and apart.passes_window(window.ids)):
                windows.append(window)
        if len(windows) == sequences:
            return windows
        del rest[:place], marks[:place]
    shared = ""
    if apart is not None and apart.passed:
        what = "windows" if passages else "documents"
        shared = f" (beside {apart.passed} {what} that were passed over, since other text of the study holds them)"
    raise ConfigError(
        f"corpus {source!r} is too short: it gives {len(windows)} windows of {length} tokens and {len(rest)} tokens "
        f"more{shared}, {sequences} windows were asked for; lower --sequences or --length, or add text"
    )
