"""Calibration: all statistics in one pass over the corpus, one decoder layer at a time.

Memory holds one block of hidden states, the attention of one layer and one expert, whatever the depth of the model. Each
weight is read once for each block of tokens; blocks are as large as ``hidden_bytes`` allows, usually the whole corpus. Only
statistics of cost ``gradient`` need the whole model in memory, and are measured apart (``bench.calibration.gradients``).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from bench.calibration.decide import Decide, Progress, Propagation
from bench.calibration.inputs import check_coverage, check_inputs, check_sampling, sampling_of, settings_of
from methods.framework.stats import CATALOGUE, Stats

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus


def calibrate(
    checkpoint: Checkpoint,
    corpus: Corpus | None,
    needs: Collection[str],
    *,
    propagation: Propagation = "one_shot",
    decide: Decide | None = None,
    cache: Path | None = None,
    device: str = "cpu",
    dtype: str = "auto",
    hidden_bytes: int = 2**30,
    boundary_tokens: int = 4096,
    sampled_tokens: int = 4096,
    cka_tokens: int = 1024,
    batch_tokens: int = 1024,
    expert_rows: int = 2048,
    output_bytes: int = 128 << 20,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Stats:
    """Measure statistics of a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        corpus: windows of token ids; None where all ``needs`` are statistics of the weights alone.
        needs: names from ``methods.framework.stats.CATALOGUE``.
        propagation: ``one_shot`` measures every layer on the original hidden states; ``sequential`` compresses each
            layer as soon as it is measured, so that the next one sees the compressed model's states. Gradients are those of
            ``checkpoint`` in both cases.
        decide: required by ``sequential``, called for each MoE layer; see ``LayerwiseDecision``.
        cache: folder of earlier measurements, read and written.
        device: torch device of the computation.
        dtype: ``auto`` (float32 on a processor, the checkpoint's type elsewhere) or a torch type such as ``float64``.
        hidden_bytes: bound on the hidden states in memory; above it they lie in a file under ``scratch``.
        boundary_tokens: tokens, evenly spaced, that ``hidden_cosine`` compares.
        sampled_tokens: tokens, evenly spaced, on which every expert runs, for statistics of cost ``sampled``.
        cka_tokens: those of them, evenly spaced, on which ``output_cka`` compares outputs.
        batch_tokens: tokens of one attention call (at least one sequence).
        expert_rows: rows of one matrix product in the feed-forward sub-layers.
        output_bytes: bound on outputs of several experts that are held for the same tokens; where those of a block take
            more, experts are read once for each part.
        scratch: folder for temporary files; None takes the system's.
        progress: called after each decoder layer, or each window.

    Returns:
        The statistics, with their settings in ``meta``. Those kept token by token, and Gram matrices of inputs, are float32
        memory maps.

    Raises:
        UnknownNameError: ``needs`` names an unknown statistic.
        ConfigError: settings contradict each other.
        StatsError: the corpus does not fit the model, a statistic is not defined for it, or a check of the measurement
            failed.
    """
    check_inputs(checkpoint.inventory, corpus, needs, propagation, decide)
    check_sampling(needs, sampled_tokens, cka_tokens)
    if not needs:
        return Stats({})
    needs, known = frozenset(needs), Stats({})
    # Weights are the same for every corpus, and gradients for every rule, so each are measured and cached apart.
    for cost, tokens in (("weights", None), ("gradient", corpus)):
        apart = frozenset(name for name in needs if CATALOGUE[name].cost == cost)
        if apart and apart < needs:
            part = calibrate(checkpoint, tokens, apart, cache=cache, device=device, dtype=dtype, scratch=scratch)
            needs, known = needs - apart, Stats({**known.values, **part.values})
    costs = {CATALOGUE[name].cost for name in needs}
    if costs <= {"weights", "gradient"}:
        corpus, propagation, decide = corpus if costs == {"gradient"} else None, "one_shot", None
    settings = settings_of(checkpoint, corpus, propagation, decide, device, dtype)
    settings["boundary_tokens"] = boundary_tokens
    sampling = sampling_of(needs, corpus, sampled_tokens, cka_tokens)
    store = None
    if cache is not None:
        from bench.calibration.cache import StatsCache

        store = StatsCache(cache, settings)
        if (found := store.load(needs, sampling)) is not None:
            return Stats({**found.values, **known.values}, found.tokens, found.meta)
    from bench.calibration.gradients import measure_gradients
    from bench.calibration.streaming import StreamedPass, measure_weights
    from bench.calibration.sums.disk_array import DiskArrays

    arrays = DiskArrays(scratch if cache is None else cache, named=cache is not None)
    try:
        if corpus is None:
            values = measure_weights(checkpoint, needs, settings["device"], settings["dtype"], scratch, progress)
        elif costs == {"gradient"}:
            values = measure_gradients(checkpoint, corpus, needs, settings["device"], settings["dtype"], progress)
        else:
            values = StreamedPass(
                checkpoint,
                corpus,
                needs,
                device=settings["device"],
                dtype=settings["dtype"],
                hidden_bytes=hidden_bytes,
                boundary_tokens=boundary_tokens,
                batch_tokens=batch_tokens,
                expert_rows=expert_rows,
                scratch=scratch,
                sampled_tokens=sampled_tokens,
                cka_tokens=cka_tokens,
                output_bytes=output_bytes,
                arrays=arrays,
                known=known.values,
            ).run(decide if propagation == "sequential" else None, progress)
        stats = Stats(values, 0 if corpus is None else corpus.tokens, settings | sampling)
        check_coverage(stats, checkpoint.inventory, needs)
        if store is not None:
            store.save(stats, arrays)
    finally:
        arrays.close()
    return Stats({**values, **known.values}, stats.tokens, stats.meta)
