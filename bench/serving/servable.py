"""Whether vLLM may serve a checkpoint, and what its experts are stored as; reads only small files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bench.checkpoint.config_file import read_config
from bench.checkpoint.content import plan_document
from bench.families.compressed_config import PREFIX
from bench.families.family import family_of
from bench.serving.plugin import STOCK
from methods.framework.errors import CheckpointError, MoebenchError
from methods.framework.inventory import ExpertForm, LayerInventory


def unservable(path: Path) -> str | None:
    """Return why vLLM cannot serve the checkpoint at ``path``, or None; reads only ``config.json``.

    Checkpoints whose layers differ are served by the plug-in (``bench.serving.plugin``), the others by vLLM's own classes.

    Raises:
        CheckpointError: there is no readable ``config.json``.
    """
    config = read_config(path)
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.startswith(PREFIX) and architecture.removeprefix(PREFIX) not in STOCK:
        return f"the plug-in has no class {architecture}; it serves {', '.join(STOCK)} with layers that differ"
    if config.get("per_layer_config") and not architecture.startswith(PREFIX):
        return f"config.json states per_layer_config, but names the stock class {architecture}, which ignores it"
    return None


def expert_forms(config: Mapping[str, Any]) -> tuple[ExpertForm, ...]:
    """Return the forms in which layers store their experts, and few bits of other linear layers, but for whole matrices.

    Args:
        config: content of ``config.json``; one that no family of ours reads states none.
    """
    try:
        layers = family_of(config).inventory(config).layers
    except MoebenchError:
        return ()
    return stored_forms(layers)


def stored_forms(layers: Iterable[LayerInventory]) -> tuple[ExpertForm, ...]:
    """Return the forms of ``layers`` in which matrices are not stored whole: those of experts, then those of linear layers."""
    layers = tuple(layers)
    experts = tuple(layer.form for layer in layers if layer.form is not None)
    return (*experts, *(ExpertForm(bits=layer.linear_bits) for layer in layers if layer.linear_bits is not None))


def has_zeros(path: Path) -> bool:
    """Return whether the plan of the checkpoint at ``path``, or one that made its source, zeroed weights."""
    try:
        document = plan_document(path)
    except CheckpointError:
        return False
    while isinstance(document, dict):
        if any("sparsity" in layer for layer in document.get("layers") or ()):
            return True
        document = (document.get("provenance") or {}).get("before")
    return False
