"""A streamed pass that is taken up layer by layer, by whoever reads its statistics (``bench.calibration.passing_stats``)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bench.calibration.calibrate import calibrate
from bench.calibration.conditions import Conditions, Effort
from bench.calibration.decide import Progress
from bench.calibration.inputs import check_inputs, check_sampling, resolved_dtype, sampling_of, settings_of
from bench.calibration.passing_stats import LayerPass, PassingStats
from bench.store.store import digest_of
from methods.framework.catalogue import CATALOGUE
from methods.framework.stat_spec import Array
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from bench.calibration.sums.disk_array import DiskArrays
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus


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
