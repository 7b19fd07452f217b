"""Statistics of which one layer is there at a time: it is measured when it is asked for, and gone when the next one is.

What is small stays. So the room that a pass takes does not grow with the depth of the model, as long as whoever reads the
statistics goes through the layers once, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Conditions, Effort
from bench.calibration.decide import Progress
from bench.calibration.inputs import check_inputs, check_sampling, resolved_dtype, sampling_of, settings_of
from bench.store.store import digest_of
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import StatsError
from methods.framework.stat_spec import Array
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from bench.calibration.sums.disk_array import DiskArrays
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus


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


def calibrate_passing(
    checkpoint: Checkpoint,
    corpus: Corpus,
    needs: Collection[str],
    *,
    cache: Path,
    device: str = "cpu",
    dtype: str = "auto",
    sampled_tokens: int = 4096,
    effort: Effort = Effort(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> PassingStats:
    """Return statistics of a checkpoint that are measured layer by layer, when they are read.

    Those of weights and of gradients are measured at once and kept, as ``calibrate`` does.

    Args:
        checkpoint: an open checkpoint.
        corpus: windows of token ids.
        needs: names from ``methods.framework.catalogue.CATALOGUE``; none of them describes the whole model.
        cache: folder of earlier measurements; files of the layer in hand lie there unless ``effort`` says otherwise.
        device: torch device of the computation.
        dtype: as for ``calibrate``.
        sampled_tokens: tokens, evenly spaced, on which every expert runs.
        effort: bounds on work and memory.
        progress: called after each decoder layer.

    Raises:
        UnknownNameError, ConfigError, StatsError: as ``calibrate``.
    """
    from bench.calibration.cache import code_of
    from bench.calibration.code_digest import code_digest

    check_inputs(checkpoint.inventory, corpus, needs)
    check_sampling(needs, sampled_tokens, effort.cka_tokens)
    effort = replace(effort, scratch=effort.scratch or cache)
    conditions = Conditions(device, resolved_dtype(dtype, device, checkpoint.inventory), sampled_tokens, effort)
    at_once = frozenset(name for name in needs if CATALOGUE[name].cost in ("weights", "gradient"))
    streamed = frozenset(needs) - at_once
    kept = Stats({})
    if at_once:
        kept = calibrate(checkpoint, corpus, at_once, cache=cache, device=device, dtype=dtype, effort=effort)
    settings = settings_of(checkpoint, corpus, None, device, conditions.dtype)
    settings |= effort.stated
    sampling = sampling_of(needs, corpus, sampled_tokens, effort.cka_tokens)
    depth = len(checkpoint.inventory.layers)

    def begin() -> tuple[Iterator[tuple[int, dict[str, Array]]], DiskArrays]:
        from bench.calibration.streaming import StreamedPass
        from bench.calibration.sums.disk_array import DiskArrays, layer_bytes

        folder = effort.scratch or cache
        folder.mkdir(parents=True, exist_ok=True)
        arrays = DiskArrays(folder, named=False)
        streamed_pass = StreamedPass(checkpoint, corpus, streamed, conditions, arrays=arrays)
        each = layer_bytes(checkpoint.inventory, streamed, min(sampled_tokens, corpus.counted))
        arrays.require(max(own + passing for own, passing in each))

        def layers() -> Iterator[tuple[int, dict[str, Array]]]:
            for index, _, values in streamed_pass.layers():
                if progress is not None:
                    progress(index + 1, depth)
                yield index, values
                values.clear()  # of what is still held while the next layer is measured

        return layers(), arrays

    one = LayerPass(begin, depth)
    one.values.update(kept.values)
    one.values.update({name: (None,) * depth for name in streamed})
    identity = digest_of({**settings, **sampling, "code": [code_digest(), code_of(needs)]})
    return PassingStats(one.values, corpus.counted, settings | sampling, one_pass=one, identity=identity)
