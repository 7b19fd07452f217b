"""Whether vLLM may serve a checkpoint, in which form it then computes, and which options it needs; reads only small files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bench.checkpoint.config_file import read_config
from bench.families.compressed_config import PREFIX
from bench.serving.plugin import STOCK
from methods.framework.errors import MoebenchError
from methods.framework.forms import has_own_form
from methods.framework.inventory import ExpertForm


def unservable(path: Path) -> str | None:
    """Return why vLLM cannot serve the checkpoint at ``path``, or None; reads only ``config.json``.

    Checkpoints whose layers differ are served by the plug-in (``bench.serving.plugin``), the others by vLLM's own classes.

    Raises:
        CheckpointError: there is no readable ``config.json``.
    """
    from bench.families.compressed_config import PREFIX
    from bench.serving.plugin import STOCK

    config = read_config(path)
    architecture = str((config.get("architectures") or [""])[0])
    if architecture.startswith(PREFIX) and architecture.removeprefix(PREFIX) not in STOCK:
        return f"the plug-in has no class {architecture}; it serves {', '.join(STOCK)} with layers that differ"
    if config.get("per_layer_config") and not architecture.startswith(PREFIX):
        return f"config.json states per_layer_config, but names the stock class {architecture}, which ignores it"
    return None


def expert_forms(config: Mapping[str, Any]) -> tuple[ExpertForm, ...]:
    """Return the forms in which layers store their experts, without those that store whole matrices.

    Args:
        config: content of ``config.json``; one that no family of ours reads states none.
    """
    from bench.families.family import family_of

    try:
        layers = family_of(config).inventory(config).layers
    except MoebenchError:
        return ()
    return tuple(layer.form for layer in layers if layer.form is not None)


def served_realisation(path: Path, cpu: bool) -> Literal["compressed", "dense"]:
    """Return whether vLLM computes with what is stored (``compressed``) or with whole matrices of values in its place.

    Values stand for experts in few bits on a CPU, and everywhere for those that have unequal widths besides. Weights that a plan
    made zero are stored like others.

    Args:
        path: checkpoint folder.
        cpu: whether vLLM runs on the CPU.

    Raises:
        CheckpointError: there is no readable ``config.json``.
    """
    return "dense" if dequantised(path, cpu) or _has_zeros(path) else "compressed"


def dequantised(path: Path, cpu: bool) -> bool:
    """Return whether vLLM holds experts in few bits of the checkpoint at ``path`` as values; see ``served_realisation``."""
    forms = [form for form in expert_forms(read_config(path)) if form.bits is not None]
    if cpu or not forms:
        return bool(forms)
    return any(map(has_own_form, forms))


def _has_zeros(path: Path) -> bool:
    """Return whether the plan of the checkpoint, or one that made its source, zeroed weights."""
    try:
        document = json.loads((path / "plan.json").read_text())
    except (OSError, ValueError):
        return False
    while isinstance(document, dict):
        if any("sparsity" in layer for layer in document.get("layers") or ()):
            return True
        document = (document.get("provenance") or {}).get("before")
    return False


def needed_options(path: Path, dtype: str, cpu: bool) -> dict[str, Any]:
    """Return options of vLLM without which the checkpoint at ``path`` is served wrongly, slowly or not at all.

    Args:
        path: checkpoint folder.
        dtype: compute type as given to vLLM.
        cpu: whether vLLM runs on the CPU.
    """
    config = read_config(path)
    options: dict[str, Any] = {}
    forms = expert_forms(config)
    # Experts in a form of their own are looped over on the host, which no CUDA graph can record.
    if cpu or any(map(has_own_form, forms)):
        options["enforce_eager"] = True
    if not cpu:
        return options
    stock = str((config.get("architectures") or [""])[0])
    if stock in STOCK and any(form.bits is not None for form in forms):
        # No kernel of the CPU build takes experts in few bits (but for AMX): our class loads the values they stand for.
        options["hf_overrides"] = {"architectures": [PREFIX + stock]}
    if "kv_lora_rank" in config:
        # The rotary kernel of vLLM's CPU build leaves the strided queries of latent attention unrotated, without any error.
        options["compilation_config"] = {"custom_ops": ["-rotary_embedding"]}
        if dtype == "float32" or (dtype == "auto" and "float32" in (config.get("dtype"), config.get("torch_dtype"))):
            options["attention_backend"] = "CPU_MLA"  # the MLA kernel preferred on processors with AMX is bfloat16 only
    return options
