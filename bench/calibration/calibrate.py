"""Calibration: all statistics in one pass over the corpus, one decoder layer at a time.

Memory holds one block of hidden states, the attention of one layer and one expert, whatever the depth of the model. Each
weight is read once for each block of tokens; blocks are as large as ``hidden_bytes`` allows, usually the whole corpus. Only
statistics of cost ``gradient`` need the whole model in memory, and are measured apart (``bench.calibration.gradients``).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bench.store.store import digest_of
from methods.framework.errors import ConfigError, StatsError, UnknownNameError
from methods.framework.inventory import Inventory
from methods.framework.plan import LayerPlan
from methods.framework.stats import CATALOGUE, Stats

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus
    from methods.framework.method import LayerwiseMethod

Propagation = Literal["one_shot", "sequential"]
ROW_STATISTICS = frozenset(
    {"router_probability", "router_row_gram", "router_correction", "logit_gram", "token_logits", "removal_loss"}
)
"""Statistics that need a router row of its own for every expert."""
Progress = Callable[[int, int], None]
"""Called with (decoder layers finished, decoder layers); windows instead of layers where gradients alone are measured."""


class Decide(Protocol):
    """What becomes of MoE layer ``layer``, given the statistics of the layers up to it; ``digest`` names the rule."""

    digest: str

    def __call__(self, layer: int, stats: Stats) -> LayerPlan:
        """Return the decision."""
        ...


class LayerwiseDecision:
    """The decisions of a layer-wise method, for sequential propagation."""

    def __init__(self, method: LayerwiseMethod, inventory: Inventory) -> None:
        """Decide as ``method`` does on the model of ``inventory``."""
        from bench.calibration.cache import decision_digest

        self._method, self._inventory = method, inventory
        self.digest = digest_of({"method": method.name, "knobs": method.knobs, "code": decision_digest()})

    def __call__(self, layer: int, stats: Stats) -> LayerPlan:
        """Return the method's plan for ``layer``."""
        return self._method.decide_layer(self._inventory, stats.only(self._method.needs), layer)


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
    _check_sampling(needs, sampled_tokens, cka_tokens)
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
    sampling = _sampling(needs, corpus, sampled_tokens, cka_tokens)
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
        _check_coverage(stats, checkpoint.inventory, needs)
        if store is not None:
            store.save(stats, arrays)
    finally:
        arrays.close()
    return Stats({**values, **known.values}, stats.tokens, stats.meta)


def check_inputs(
    inventory: Inventory, corpus: Corpus | None, needs: Collection[str], propagation: str, decide: Decide | None
) -> None:
    for name in needs:
        if name not in CATALOGUE:
            raise UnknownNameError("statistic", name, CATALOGUE)
    if propagation not in ("one_shot", "sequential"):
        raise UnknownNameError("propagation", propagation, ("one_shot", "sequential"))
    if (propagation == "sequential") != (decide is not None):
        raise ConfigError(
            f"propagation={propagation!r} with decide={decide!r}: 'sequential' needs a rule that decides each layer, "
            "and 'one_shot' takes none"
        )
    tokens_wanted = [name for name in sorted(needs) if CATALOGUE[name].cost != "weights"]
    if corpus is None and tokens_wanted:
        raise ConfigError(f"{', '.join(tokens_wanted)} need a corpus to be measured on; name one with --corpus")
    shared = [index for index in inventory.moe_layers if inventory.layers[index].expert_map is not None]
    if shared and (undefined := ROW_STATISTICS.intersection(needs)):
        raise StatsError(
            f"{', '.join(sorted(undefined))} cannot be measured: they are defined for one router row per expert, and rows "
            f"of layer {shared[0]} share experts or lead to constants; measure them on the model before it was merged"
        )
    if corpus is not None:
        highest = max(max(window) for window in corpus.windows)
        if highest >= inventory.vocab:
            raise StatsError(
                f"corpus {corpus.name} holds token id {highest}, the model knows 0 to {inventory.vocab - 1}; "
                "tokenise the text with this model's tokenizer"
            )


def _check_sampling(needs: Collection[str], sampled_tokens: int, cka_tokens: int) -> None:
    if sampled_tokens < 1:
        raise ConfigError(f"sampled_tokens={sampled_tokens} leaves no token to run experts on; allowed: 1 or more")
    if "output_cka" in needs and min(sampled_tokens, cka_tokens) < 2:
        raise ConfigError(
            f"output_cka compares how outputs vary over tokens, so it needs two or more; sampled_tokens={sampled_tokens} "
            f"and cka_tokens={cka_tokens} leave {min(sampled_tokens, cka_tokens)}"
        )


def _sampling(needs: Collection[str], corpus: Corpus | None, sampled_tokens: int, cka_tokens: int) -> dict[str, int]:
    """Return the settings that matter for ``needs`` but not for all statistics, as they come out on this corpus."""
    sampling: dict[str, int] = {}
    if corpus is not None and any(CATALOGUE[name].cost == "sampled" for name in needs):
        sampling["sampled_tokens"] = min(sampled_tokens, corpus.tokens)
        if "output_cka" in needs:
            sampling["cka_tokens"] = min(cka_tokens, corpus.tokens, sampled_tokens)
    return sampling


def settings_of(
    checkpoint: Checkpoint, corpus: Corpus | None, propagation: str, decide: Decide | None, device: str, dtype: str
) -> dict[str, Any]:
    """Return everything that can change values, as JSON values."""
    from importlib.metadata import version

    inventory = checkpoint.inventory
    return {
        "model": checkpoint.content,
        "architecture": digest_of([inventory.family, asdict(inventory.router), dict(inventory.config)]),
        "corpus": None if corpus is None else corpus.digest,
        "corpus_name": None if corpus is None else corpus.name,
        "propagation": propagation,
        "decide": None if decide is None else decide.digest,
        "device": device,
        "dtype": resolved_dtype(dtype, device, inventory),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def resolved_dtype(dtype: str, device: str, inventory: Inventory) -> str:
    """Return the name of the torch type that is computed in."""
    stored = {"F64": "float64", "BF16": "bfloat16", "F16": "float16"}
    allowed = ("float32", *stored.values())
    if dtype == "auto":
        return "float32" if device == "cpu" else stored.get(inventory.outer[0].dtype, "float32")
    if dtype not in allowed:
        raise UnknownNameError("dtype", dtype, ("auto", *allowed))
    return dtype


def _check_coverage(stats: Stats, inventory: Inventory, needs: Collection[str]) -> None:
    """Make sure that every layer has every statistic that is defined for it."""
    scopes: Mapping[str, Collection[int]] = {
        "moe": inventory.moe_layers,
        "block": range(len(inventory.layers)),
        "model": range(1),
    }
    for name in needs:
        for index in scopes[CATALOGUE[name].scope]:
            if stats.values[name][index] is None:
                raise StatsError(f"{name} was not measured in layer {index}; this is a defect of the calibration pass")


__all__ = ["Decide", "LayerwiseDecision", "Progress", "calibrate"]
