"""What a measurement is asked for: checked before any work, and written down as the settings that can change its values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from bench.calibration.decide import Decide
from bench.store.store import digest_of
from bench.store.versions import versions
from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import ConfigError, RefusedError, StatsError, UnknownNameError
from methods.framework.inventory import Inventory
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.text.corpus import Corpus

WHOLE_TEXT = (
    "takes the loss or the outputs of whole windows, for which counting answers alone is not built; count every token "
    "(answers_only: false)"
)
"""Why gradients and probes are refused where only some tokens count."""
_LIBRARIES = ("numpy", "scipy", "torch", "transformers")
"""Those that measure; what a tokenizer made of a text is in the digest of the corpus."""


def check_inputs(inventory: Inventory, corpus: Corpus | None, needs: Collection[str]) -> None:
    """Refuse what cannot be measured on this model and corpus, before any work.

    Args:
        inventory: what the checkpoint contains.
        corpus: windows of token ids, or None.
        needs: names of statistics.

    Raises:
        UnknownNameError: an unknown statistic.
        ConfigError: a corpus is missing.
        StatsError: a statistic that is not defined for the model, or a corpus with tokens that the model does not know.
        RefusedError: a statistic of gradients where only some tokens count.
    """
    for name in needs:
        if name not in CATALOGUE:
            raise UnknownNameError("statistic", name, CATALOGUE)
    tokens_wanted = [name for name in sorted(needs) if CATALOGUE[name].cost != "weights"]
    if corpus is None and tokens_wanted:
        raise ConfigError(f"{', '.join(tokens_wanted)} need a corpus to be measured on; name one with --corpus")
    shared = [index for index in inventory.moe_layers if inventory.layers[index].expert_map is not None]
    if shared and (undefined := [name for name in sorted(needs) if CATALOGUE[name].of_rows]):
        raise StatsError(
            f"{', '.join(undefined)} cannot be measured: they are defined for one router row per expert, and rows "
            f"of layer {shared[0]} share experts or lead to constants; measure them on the model before it was merged"
        )
    backward = [name for name in sorted(needs) if CATALOGUE[name].cost == "gradient"]
    if corpus is not None and corpus.marks is not None and backward:
        raise RefusedError(f"{', '.join(backward)} {WHOLE_TEXT}")
    if corpus is not None:
        highest = max(max(window) for window in corpus.windows)
        if highest >= inventory.vocab:
            raise StatsError(
                f"corpus {corpus.name} holds token id {highest}, the model knows 0 to {inventory.vocab - 1}; "
                "tokenise the text with this model's tokenizer"
            )


def check_sampling(needs: Collection[str], sampled_tokens: int, cka_tokens: int) -> None:
    """Refuse settings that leave too few tokens for what is asked.

    Args:
        needs: names of statistics.
        sampled_tokens: tokens on which every expert runs.
        cka_tokens: those of them on which outputs are compared.

    Raises:
        ConfigError: there are too few.
    """
    if sampled_tokens < 1:
        raise ConfigError(f"sampled_tokens={sampled_tokens} leaves no token to run experts on; allowed: 1 or more")
    comparing = [name for name in sorted(needs) if CATALOGUE[name].compares_tokens]
    if comparing and min(sampled_tokens, cka_tokens) < 2:
        raise ConfigError(
            f"{comparing[0]} compares how outputs vary over tokens, so it needs two or more; sampled_tokens={sampled_tokens} "
            f"and cka_tokens={cka_tokens} leave {min(sampled_tokens, cka_tokens)}"
        )


def sampling_of(needs: Collection[str], corpus: Corpus | None, sampled_tokens: int, cka_tokens: int) -> dict[str, int]:
    """Return the settings that matter for ``needs`` but not for all statistics, as they come out on this corpus.

    Args:
        needs: names of statistics.
        corpus: on which they are measured; None where all describe weights alone.
        sampled_tokens: tokens on which every expert runs.
        cka_tokens: those of them on which outputs are compared.
    """
    sampling: dict[str, int] = {}
    if corpus is not None and any(CATALOGUE[name].cost == "sampled" for name in needs):
        sampling["sampled_tokens"] = min(sampled_tokens, corpus.counted)
        if any(CATALOGUE[name].compares_tokens for name in needs):
            sampling["cka_tokens"] = min(cka_tokens, corpus.counted, sampled_tokens)
    return sampling


def settings_of(
    checkpoint: Checkpoint, corpus: Corpus | None, decide: Decide | None, device: str, dtype: str
) -> dict[str, Any]:
    """Return everything that can change values, as JSON values.

    Args:
        checkpoint: the model.
        corpus: windows of token ids, or None.
        decide: rule of sequential propagation; None propagates the original states.
        device: torch device.
        dtype: name of the torch type.
    """
    inventory = checkpoint.inventory
    roles = [[entry.name, entry.role] for entry in inventory.tensors()]  # as the family's file reads the names
    return {
        "model": checkpoint.content,
        "architecture": digest_of([inventory.family, asdict(inventory.router), dict(inventory.config), roles]),
        "corpus": None if corpus is None else corpus.digest,
        "corpus_name": None if corpus is None else corpus.name,
        "propagation": "one_shot" if decide is None else "sequential",
        "decide": None if decide is None else decide.digest,
        "device": device,
        "dtype": resolved_dtype(dtype, device, inventory),
        "versions": {name: found for name, found in versions().items() if name in _LIBRARIES},
    }


def resolved_dtype(dtype: str, device: str, inventory: Inventory) -> str:
    """Return the name of the torch type that is computed in.

    Args:
        dtype: its name, or ``auto``: float32 on the CPU, elsewhere the type in which the model is stored.
        device: that computes; ``cpu`` is told from all others.
        inventory: the model, of which the type of its first tensor outside the layers counts.

    Raises:
        UnknownNameError: ``dtype`` is neither ``auto`` nor a floating type that is supported.
    """
    stored = {"F64": "float64", "BF16": "bfloat16", "F16": "float16"}
    allowed = ("float32", *stored.values())
    if dtype == "auto":
        return "float32" if device == "cpu" else stored.get(inventory.outer[0].dtype, "float32")
    if dtype not in allowed:
        raise UnknownNameError("dtype", dtype, ("auto", *allowed))
    return dtype


def check_coverage(stats: Stats, inventory: Inventory, needs: Collection[str]) -> None:
    """Make sure that every layer has every statistic that is defined for it.

    Args:
        stats: what the pass has measured.
        inventory: the model.
        needs: names of the statistics that were asked for.

    Raises:
        StatsError: a value is missing; a defect of the pass.
    """
    for name in needs:
        spec = CATALOGUE[name]
        where = [index for index, layer in enumerate(inventory.layers) if spec.defined_in(layer)]
        for index in [0] if spec.scope == "model" else where:
            if stats.values[name][index] is None:
                raise StatsError(f"{name} was not measured in layer {index}; this is a defect of the calibration pass")
