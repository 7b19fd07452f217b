"""Sequences whose items are made on access, so that one of them need be in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar, overload

Item = TypeVar("Item")


class Lazy(Sequence[Item]):
    """Items 0 to ``count`` - 1, each made by ``make`` whenever it is asked for."""

    def __init__(self, make: Callable[[int], Item], count: int) -> None:
        """Make nothing yet."""
        self._make, self._count = make, count

    def __len__(self) -> int:
        """Return the number of items."""
        return self._count

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Item]: ...
    def __getitem__(self, place: int | slice) -> Item | Sequence[Item]:
        """Make an item; a slice is lazy too."""
        if isinstance(place, slice):
            chosen = range(self._count)[place]
            return Lazy(lambda index: self._make(chosen[index]), len(chosen))
        return self._make(range(self._count)[place])


def lazily(make: Callable[[int], Item], keys: Sequence[int]) -> Lazy[Item]:
    """Return the items that ``make`` gives for ``keys``, each made whenever it is asked for."""
    return Lazy(lambda place: make(keys[place]), len(keys))


class Chained(Lazy[Item]):
    """The items of two sequences, one behind the other, each taken from its own whenever it is asked for."""

    def __init__(self, first: Sequence[Item], second: Sequence[Item]) -> None:
        """Take nothing yet."""
        super().__init__(
            lambda place: first[place] if place < len(first) else second[place - len(first)], len(first) + len(second)
        )
