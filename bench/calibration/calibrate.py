"""Calibration: all statistics in one pass over the corpus, one decoder layer at a time.

Memory holds one block of hidden states, the attention of one layer and one expert, whatever the depth of the model. Each
weight is read once for each block of tokens; blocks are as large as ``hidden_bytes`` allows, usually the whole corpus. Only
statistics of cost ``gradient`` need the whole model in memory, and are measured apart (``bench.calibration.gradients``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench.calibration.conditions import Conditions, Effort
from bench.calibration.decide import Decide, Progress
from bench.calibration.inputs import (
    check_coverage,
    check_inputs,
    check_sampling,
    resolved_dtype,
    sampling_of,
    settings_of,
)
from methods.framework.catalogue import CATALOGUE
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from bench.calibration.streaming import Values
    from bench.calibration.sums.disk_array import DiskArrays
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus


def calibrate(
    checkpoint: Checkpoint,
    corpus: Corpus | None,
    needs: Collection[str],
    *,
    decide: Decide | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    sampled_tokens: int = 4096,
    effort: Effort = Effort(),  # noqa: B008 - frozen
    progress: Progress | None = None,
) -> Stats:
    """Measure statistics of a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        corpus: windows of token ids; None where all ``needs`` are statistics of the weights alone.
        needs: names from ``methods.framework.catalogue.CATALOGUE``.
        decide: None measures every layer on the original hidden states, the propagation ``one_shot``. A rule makes it
            ``sequential``: called for each MoE layer, it compresses the layer as soon as that is measured, so that the next
            one sees the compressed model's states; see ``LayerwiseDecision``. Gradients are those of ``checkpoint`` in both
            cases.
        cache: folder of earlier measurements, read and written.
        device: torch device of the computation.
        dtype: ``auto`` (float32 on a processor, the checkpoint's type elsewhere) or a torch type such as ``float64``.
        sampled_tokens: tokens, evenly spaced, on which every expert runs, for statistics of cost ``sampled``.
        effort: bounds on work and memory.
        progress: called after each decoder layer, or each window.

    Returns:
        The statistics, with their settings in ``meta``. Those kept token by token, Gram matrices of inputs and squared
        gradients by entry are float32 memory maps.

    Raises:
        UnknownNameError: ``needs`` names an unknown statistic.
        ConfigError: settings contradict each other.
        StatsError: the corpus does not fit the model, a statistic is not defined for it, or a check of the measurement
            failed.
    """
    check_inputs(checkpoint.inventory, corpus, needs)
    check_sampling(needs, sampled_tokens, effort.cka_tokens)
    conditions = Conditions(device, resolved_dtype(dtype, device, checkpoint.inventory), sampled_tokens, effort)
    whole = Stats({})
    parts = list(_parts(frozenset(needs), corpus, decide, conditions))
    for part in parts:
        found = part.measured(checkpoint, cache, whole, progress if part is parts[-1] else None)
        whole = Stats({**whole.values, **found.values}, found.tokens, found.meta)
    return whole


@dataclass(frozen=True, slots=True)
class _Part:
    """Statistics that are measured together and cached in one file."""

    needs: frozenset[str]
    corpus: Corpus | None
    decide: Decide | None
    conditions: Conditions

    def measured(self, checkpoint: Checkpoint, cache: Path | None, known: Stats, progress: Progress | None) -> Stats:
        """Return them, recalled or measured; ``known`` are those that a rule sees beside them."""
        from bench.calibration.cache import StatsCache, code_of
        from bench.calibration.sums.disk_array import DiskArrays

        conditions, effort = self.conditions, self.conditions.effort
        settings = settings_of(checkpoint, self.corpus, self.decide, conditions.device, conditions.dtype)
        settings |= effort.stated
        sampling = sampling_of(self.needs, self.corpus, conditions.sampled_tokens, effort.cka_tokens)
        store = None
        if cache is not None:
            # What a rule decides, and so every later layer, hangs on all statistics that it sees.
            seen = None if self.decide is None else code_of(self.needs | known.values.keys())
            store = StatsCache(cache, {**settings, "seen": seen})
            if (found := store.load(self.needs, sampling)) is not None:
                return found
        arrays = DiskArrays(effort.scratch if cache is None else cache, named=cache is not None)
        try:
            values = self._values(checkpoint, arrays, known, progress)
            stats = Stats(values, 0 if self.corpus is None else self.corpus.counted, settings | sampling)
            check_coverage(stats, checkpoint.inventory, self.needs)
            if store is not None:
                store.save(stats, arrays)
        finally:
            arrays.close()
        return stats

    def _values(self, checkpoint: Checkpoint, arrays: DiskArrays, known: Stats, progress: Progress | None) -> Values:
        from bench.calibration import gradients, streaming

        if self.corpus is None:
            return streaming.measure_weights(checkpoint, self.needs, self.conditions, progress)
        if {CATALOGUE[name].cost for name in self.needs} == {"gradient"}:
            return gradients.measure_gradients(checkpoint, self.corpus, self.needs, self.conditions, progress, arrays)
        streamed = streaming.StreamedPass(
            checkpoint, self.corpus, self.needs, self.conditions, arrays=arrays, known=known.values
        )
        return streamed.run(self.decide, progress)


def _parts(
    needs: frozenset[str], corpus: Corpus | None, decide: Decide | None, conditions: Conditions
) -> Iterator[_Part]:
    """Split ``needs``: weights are the same for every corpus, and gradients for every rule, so each are cached apart."""
    of_weights, of_gradients = (
        frozenset(name for name in needs if CATALOGUE[name].cost == cost) for cost in ("weights", "gradient")
    )
    for part in (
        _Part(of_weights, None, None, conditions),
        _Part(of_gradients, corpus, None, conditions),
        _Part(needs - of_weights - of_gradients, corpus, decide, conditions),
    ):
        if part.needs:
            yield part
