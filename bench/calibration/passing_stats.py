"""Statistics of which one layer is there at a time: it is measured when it is asked for, and gone when the next one is.

What is small stays. So the room that a pass takes does not grow with the depth of the model, as long as whoever reads the
statistics goes through the layers once, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import StatsError
from methods.framework.stat_spec import Array
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from bench.calibration.sums.disk_array import DiskArrays


def passing_names(names: Iterable[str]) -> frozenset[str]:
    """Return those of some statistics that lie in files and are measured layer by layer, so that they may go with their layer."""
    return frozenset(name for name in names if CATALOGUE[name].on_disk and CATALOGUE[name].cost != "gradient")


class LayerPass:
    """A streamed pass that is taken up layer by layer; ``values`` holds what it measured, of files those of one layer."""

    def __init__(
        self, begin: Callable[[], tuple[Iterator[tuple[int, dict[str, Array]]], DiskArrays]], depth: int
    ) -> None:
        """Measure nothing yet.

        Args:
            begin: starts the pass and returns its layers with the files in which it keeps what is big.
            depth: decoder layers of the model.
        """
        self._begin, self._depth = begin, depth
        self._layers: Iterator[tuple[int, dict[str, Array]]] | None = None
        self._arrays: DiskArrays | None = None
        self._watchers: list[Callable[[int], None]] = []
        self.values: dict[str, tuple[Array | None, ...]] = {}
        self.reached = -1
        """The layer that was measured last."""

    def watch(self, seen: Callable[[int], None]) -> None:
        """Have ``seen`` called with each layer once it is measured, before anyone else reads it."""
        assert self.reached < 0
        self._watchers.append(seen)

    def reach(self, layer: int) -> None:
        """Measure up to ``layer``; what lies in files of those before it is gone.

        Raises:
            StatsError: the layer is gone, or measuring fails.
        """
        if layer < self.reached:
            raise StatsError(
                f"statistics of layer {layer} are gone, since layer {self.reached} was measured after it; what reads them is at "
                "fault; measure with moments='kept'"
            )
        while self.reached < layer:
            self._next()

    def finish(self) -> None:
        """Measure the layers that are left, and let go of all files."""
        self.reach(self._depth - 1)
        self._release()
        self._layers = None

    def _next(self) -> None:
        if self._layers is None:
            self._layers, self._arrays = self._begin()
        self._release()
        index, found = next(self._layers)
        for name, value in found.items():
            column = list(self.values[name])
            column[index] = value
            self.values[name] = tuple(column)
        self.reached = index
        for seen in self._watchers:
            seen(index)

    def _release(self) -> None:
        if self.reached >= 0:
            for name in passing_names(self.values):
                self.values[name] = (None,) * self._depth
        if self._arrays is not None:
            self._arrays.close()


@dataclass(frozen=True)
class PassingStats(Stats):
    """Statistics of a pass that is taken up when they are read; ask for the layers in their order.

    Args:
        one_pass: measures them.
        identity: digest of everything that their values depend on.
    """

    one_pass: LayerPass | None = None
    identity: str = ""

    @property
    def layers(self) -> LayerPass:
        """The pass."""
        assert self.one_pass is not None
        return self.one_pass

    def layer(self, name: str, index: int) -> Array:
        """Return statistic ``name`` of decoder layer ``index``, measuring up to it."""
        ahead = index > self.layers.reached
        if name in self.layers.values and (ahead or passing_names([name])):
            self.layers.reach(index)
        return super().layer(name, index)

    def only(self, names: Iterable[str]) -> Stats:
        """Return these statistics themselves, of which nothing but ``names`` may be there."""
        assert set(self.values) <= set(names), "a pass is made for who reads it"
        return self
