"""Calibration: all statistics in one pass over the corpus, one decoder layer at a time.

Memory holds one block of hidden states, the attention of one layer and one expert, whatever the depth of the model. Each
weight is read once for each block of tokens; blocks are as large as ``hidden_bytes`` allows, usually the whole corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from bench.store import digest_of
from methods.errors import ConfigError, StatsError, UnknownNameError
from methods.inventory import Inventory
from methods.plan import LayerPlan
from methods.stats import CATALOGUE, Stats

if TYPE_CHECKING:
    from bench.checkpoint import Checkpoint
    from bench.corpus import Corpus
    from methods.method import LayerwiseMethod

Propagation = Literal["one_shot", "sequential"]
Progress = Callable[[int, int], None]
"""Called with (decoder layers finished, decoder layers)."""


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
        self._method, self._inventory = method, inventory
        self.digest = digest_of({"method": method.name, "knobs": method.knobs})

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
    batch_tokens: int = 1024,
    expert_rows: int = 4096,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Stats:
    """Measure statistics of a checkpoint.

    Args:
        checkpoint: an open checkpoint.
        corpus: windows of token ids; None where all ``needs`` are statistics of the weights alone.
        needs: names from ``methods.stats.CATALOGUE``.
        propagation: ``one_shot`` measures every layer on the original hidden states; ``sequential`` compresses each
            layer as soon as it is measured, so that the next one sees the compressed model's states.
        decide: required by ``sequential``, called for each MoE layer; see ``LayerwiseDecision``.
        cache: folder of earlier measurements, read and written.
        device: torch device of the computation.
        dtype: ``auto`` (float32 on a processor, the checkpoint's type elsewhere) or a torch type such as ``float64``.
        hidden_bytes: bound on the hidden states in memory; above it they lie in a file under ``scratch``.
        boundary_tokens: tokens, evenly spaced, that ``hidden_cosine`` compares.
        batch_tokens: tokens of one attention call (at least one sequence).
        expert_rows: rows of one matrix product in the feed-forward sub-layers.
        scratch: folder for temporary files; None takes the system's.
        progress: called after each decoder layer.

    Returns:
        The statistics, with their settings in ``meta``.

    Raises:
        UnknownNameError: ``needs`` names an unknown statistic.
        ConfigError: settings contradict each other.
        StatsError: the corpus does not fit the model, or a check of the measurement failed.
    """
    _check(checkpoint.inventory, corpus, needs, propagation, decide)
    if not needs:
        return Stats({})
    if all(CATALOGUE[name].cost == "weights" for name in needs):
        corpus, propagation, decide = None, "one_shot", None  # the weights are the same for every corpus
    settings = _settings(checkpoint, corpus, propagation, decide, device, dtype)
    settings["boundary_tokens"] = boundary_tokens
    store = None
    if cache is not None:
        from bench.calibration.cache import StatsCache

        store = StatsCache(cache, settings)
        if (found := store.load(needs)) is not None:
            return found
    from bench.calibration.streaming import StreamedPass, measure_weights

    if corpus is None:
        values = measure_weights(checkpoint, settings["device"], settings["dtype"], progress)
        tokens = 0
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
        ).run(decide if propagation == "sequential" else None, progress)
        tokens = corpus.tokens
    stats = Stats(values, tokens, settings)
    _check_coverage(stats, checkpoint.inventory, needs)
    if store is not None:
        store.save(stats)
    return stats


def _check(
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
    if corpus is not None:
        highest = max(max(window) for window in corpus.windows)
        if highest >= inventory.vocab:
            raise StatsError(
                f"corpus {corpus.name} holds token id {highest}, the model knows 0 to {inventory.vocab - 1}; "
                "tokenise the text with this model's tokenizer"
            )


def _settings(
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
        "dtype": _resolved(dtype, device, inventory),
        "torch": version("torch"),
        "transformers": version("transformers"),
    }


def _resolved(dtype: str, device: str, inventory: Inventory) -> str:
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
