"""Texts of one study that have no passage in common."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

RUN = 16
"""Tokens in a row that two windows of a text seldom have in common unless they hold the same passage."""
_FACTOR = np.uint64(0x9E3779B97F4A7C15)


class Apart:
    """What a study reads already, from which a later text keeps apart.

    A text file is cut in other places for windows of other lengths, so windows are compared: two share a passage where they have
    16 tokens in a row in common (as many as they have, where that is less). Conversations, instructions and data sets repeat
    templates, so whole documents are compared.
    """

    def __init__(self) -> None:
        """Begin with no text."""
        self.passed = 0
        """Windows and documents that were passed over."""
        self._windows: list[Sequence[int]] = []
        self._documents: set[bytes] = set()
        self._runs: dict[int, NDArray[np.uint64]] = {}

    def add(self, windows: Iterable[Sequence[int]], documents: Iterable[bytes] = ()) -> None:
        """Add windows of token ids, and marks of the documents that they are from."""
        self._windows += windows
        self._documents.update(documents)
        self._runs = {}

    def passes_window(self, window: Sequence[int]) -> bool:
        """Tell whether a window is passed over, since it has a passage in common with what was added."""
        if not self._windows:
            return False
        count = min(RUN, len(window), *map(len, self._windows))
        if count not in self._runs:
            self._runs[count] = np.unique(np.concatenate([_runs(one, count) for one in self._windows]))
        shared = bool(np.isin(_runs(window, count), self._runs[count]).any())
        self.passed += shared
        return shared

    def passes_document(self, document: bytes) -> bool:
        """Tell whether a document is passed over, since it was added."""
        shared = document in self._documents
        self.passed += shared
        return shared


def mark_of(ids: Sequence[int]) -> bytes:
    """Return what a document is told by."""
    return hashlib.sha256(np.asarray(ids, dtype="<i8").tobytes()).digest()


def _runs(window: Sequence[int], count: int) -> NDArray[np.uint64]:
    """Return a number of 64 bits for each ``count`` tokens in a row."""
    ids = np.asarray(window, dtype=np.uint64) + np.uint64(1)
    sums = np.zeros(len(ids) - count + 1, dtype=np.uint64)
    for start in range(count):
        sums = sums * _FACTOR + ids[start : start + len(sums)]
        sums ^= sums >> np.uint64(29)
    return sums
