"""The ``quantization_config`` of a checkpoint whose routed experts are stored in few bits, for vLLM and transformers.

Targets are regular expressions that name the quantised layers, so that nothing else is touched whatever classes a library
builds its layers from, and so that layers may differ. One target stands for one of the three matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from methods.framework.errors import CheckpointError

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
_REMEDY = (
    "Read are FP8 with block scales, packed integers of compressed-tensors and GPTQ, NVFP4, MXFP4, and what moebench itself "
    "quantised; take the 16-bit checkpoint, or have the library that wrote this one write it back in 16 bits"
)
_TARGET = re.compile(r"re:(?P<before>[^|()]*)\((?P<layers>\d+(\|\d+)*)\)(?P<after>[^|()]*\\d\+[^|()]*)\$")
_GROUP_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}


def quantization_config(
    experts: Sequence[str], others: Sequence[str], forms: Mapping[int, tuple[int, int]]
) -> dict[str, Any]:
    """Return the config that says which matrices are packed, and how.

    Layers with the same bits and group share one group of the config; a layer that ``forms`` lacks stays as it is.

    Args:
        experts: templates of the routed experts' matrices, ``model.layers.{layer}.mlp.experts.{expert}.up_proj.weight``.
        others: templates of all other tensors of the checkpoint; their modules are listed under ``ignore``.
        forms: bits and group size of each quantised layer, at least one.

    Raises:
        ValueError: no layer is quantised; such a checkpoint has no such config.
    """
    if not forms:
        raise ValueError("no layer is quantised, so there is nothing to state")
    layers_of: dict[tuple[int, int], list[int]] = {}
    for layer, form in sorted(forms.items()):
        layers_of.setdefault(form, []).append(layer)
    groups = {
        f"group_{number}": {
            "targets": [_pattern(template, "|".join(map(str, layers_of[form]))) for template in experts],
            "weights": _weights(*form),
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
        for number, form in enumerate(sorted(layers_of))
    }
    ignored = (_pattern(template) for template in others if template.endswith(".weight"))
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(dict.fromkeys(ignored)),
    }


def read_quantization(config: Mapping[str, Any], layers: int) -> dict[int, tuple[int, int]]:
    """Return bits and group size of each quantised layer, from the config of a checkpoint; empty without quantisation.

    Args:
        config: the whole config.json.
        layers: decoder layers of the model.

    Raises:
        CheckpointError: the checkpoint is quantised in another way than ``quantization_config`` writes.
    """
    stated = config.get("quantization_config")
    if stated is None:
        return {}
    if not isinstance(stated, Mapping):
        raise _unreadable(f"it is {str(stated)[:60]}, not a mapping")
    for key, wanted in (("quant_method", METHOD), ("format", FORMAT), ("quantization_status", "compressed")):
        if stated.get(key) != wanted:
            raise _unreadable(f"{key} is {stated.get(key)!r}, allowed is {wanted!r}")
    if stated.get("kv_cache_scheme"):
        raise _unreadable("the key-value cache is quantised too")
    groups = stated.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise _unreadable("it has no config_groups")
    forms: dict[int, tuple[int, int]] = {}
    for name, group in groups.items():
        form, indices = _read_group(name, group)
        for layer in indices:
            if layer >= layers:
                raise _unreadable(f"{name} names layer {layer}; the model has {layers}")
            if layer in forms:
                raise _unreadable(f"layer {layer} is named twice")
            forms[layer] = form
    return forms


def _read_group(name: str, group: Any) -> tuple[tuple[int, int], list[int]]:
    """Return bits and group size, and the layers that they are for."""
    if not isinstance(group, Mapping) or set(group) - _GROUP_KEYS or group.get("format") != FORMAT:
        raise _unreadable(f"{name} is {str(group)[:80]}")
    if group.get("input_activations") or group.get("output_activations"):
        raise _unreadable(f"{name} quantises activations")
    weights = group.get("weights")
    stated: Mapping[str, Any] = weights if isinstance(weights, Mapping) else {}
    bits, size = stated.get("num_bits"), stated.get("group_size")
    if bits not in (4, 8) or not isinstance(size, int) or size < 1 or weights != _weights(bits, size):
        raise _unreadable(f"weights of {name} are {weights}; allowed are those of {_weights(4, 128)}, in 4 or 8 bits")
    targets = group.get("targets")
    if not isinstance(targets, list | tuple) or len(targets) != 3:
        raise _unreadable(f"{name} targets {str(targets)[:80]}, not the three matrices of the routed experts")
    matches = [_TARGET.fullmatch(target) if isinstance(target, str) else None for target in targets]
    found = {match["layers"] if match else None for match in matches}
    if None in found or len(found) != 1:
        raise _unreadable(
            f"{name} targets {str(targets)[:120]}, not the same layers of three matrices of routed experts"
        )
    return (bits, size), [int(layer) for layer in str(found.pop()).split("|")]


def _weights(bits: int, group: int) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": group,
        "dynamic": False,
        "actorder": None,
    }


def _pattern(template: str, layers: str | None = None) -> str:
    """Return the modules of a template: a name, or a regular expression for all layers or those of ``a|b|c``."""
    module = template.removesuffix(".weight")
    if "{" not in module:
        return module
    marked = re.escape(module.replace("{layer}", "<layer>").replace("{expert}", "<expert>"))
    numbers = r"\d+" if layers is None else f"({layers})"
    return "re:" + marked.replace("<layer>", numbers).replace("<expert>", r"\d+") + "$"


def _unreadable(found: str) -> CheckpointError:
    return CheckpointError(f"quantization_config of config.json cannot be read: {found}. {_REMEDY}")
