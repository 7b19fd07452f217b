"""How a plan file states which channels of an expert stay: as ranges, or as bits where these are shorter."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

import numpy as np

BITS = "bits:"
"""Beginning of the second way: base64 of one bit a channel, the first in the lowest bit of the first byte."""
MOST = 1 << 20
"""Channels that an expert can have, so that a few characters of a file never stand for more."""


def channel_text(channels: Sequence[int]) -> str:
    """Return ascending ``channels`` as ``0-5,9``, or as ``bits:`` and base64, whichever is shorter."""
    array = np.asarray(channels, np.int64)
    breaks = np.flatnonzero(np.diff(array) != 1) + 1
    first = array[np.concatenate(([0], breaks))]
    last = array[np.concatenate((breaks - 1, [len(array) - 1]))]
    size = len(BITS) + 4 * -(-(int(array[-1]) // 8 + 1) // 3)
    if 2 * len(first) - 1 <= size:  # every range takes at least a digit and a comma
        spans = zip(first.tolist(), last.tolist(), strict=True)
        ranges = ",".join(str(start) if start == stop else f"{start}-{stop}" for start, stop in spans)
        if len(ranges) <= size:
            return ranges
    stays = np.zeros(array[-1] + 1, np.uint8)
    stays[array] = 1
    return BITS + base64.b64encode(np.packbits(stays, bitorder="little").tobytes()).decode()


def channels_of(text: str) -> tuple[int, ...]:
    """Return what ``channel_text`` states.

    Raises:
        ValueError: it is neither of the two ways, or names a channel from ``MOST`` on.
    """
    if text.startswith(BITS):
        try:
            content = base64.b64decode(text.removeprefix(BITS), validate=True)
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"the channels {text[:40]!r} are not base64 behind {BITS!r}: {error}") from error
        if 8 * len(content) > MOST:
            raise ValueError(f"the channels {text[:40]!r} go on for {8 * len(content)}; an expert has at most {MOST}")
        return tuple(np.flatnonzero(np.unpackbits(np.frombuffer(content, np.uint8), bitorder="little")).tolist())
    found: list[int] = []
    for span in text.split(","):
        start, dash, stop = span.partition("-")
        if not all(number.isascii() and number.isdigit() and len(number) < 8 for number in (start, stop or start)) or (
            dash and not stop
        ):
            raise ValueError(f"channels are stated like '0-5,9' or as {BITS!r} and base64, found {text[:40]!r}")
        first, last = int(start), int(stop or start)
        if not first <= last < MOST or (found and first <= found[-1]):
            raise ValueError(f"the channels {text[:40]!r} must ascend and lie below {MOST}, found {span!r}")
        found.extend(range(first, last + 1))
    return tuple(found)
