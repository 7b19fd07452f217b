"""The ``quantization_config`` of a checkpoint whose experts or linear layers are stored in few bits, for vLLM and transformers.

Targets are regular expressions that name the quantised layers, so that nothing else is touched whatever classes a library
builds its layers from, and so that layers may differ. One target stands for one of the three matrices.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from methods.framework.errors import CheckpointError
from methods.framework.inventory import Packing

METHOD, FORMAT = "compressed-tensors", "pack-quantized"
_REMEDY = (
    "Read are FP8 with block scales, packed integers of compressed-tensors and GPTQ, NVFP4, MXFP4, and what moebench itself "
    "quantised; take the 16-bit checkpoint, or have the library that wrote this one write it back in 16 bits"
)
_TARGET = re.compile(r"re:(?P<before>[^|()]*)\((?P<layers>\d+(\|\d+)*)\)(?P<after>[^|()]*)\$")
_NONE: Mapping[str, Mapping[int, Packing]] = MappingProxyType({})
_GROUP_KEYS = {"targets", "weights", "input_activations", "output_activations", "format"}


class Packed(NamedTuple):
    """By decoder layer, how its matrices are packed in few bits.

    Args:
        experts: those of the routed experts.
        linears: the other linear layers.
    """

    experts: dict[int, Packing]
    linears: dict[int, Packing]


def quantization_config(
    experts: Sequence[str],
    others: Sequence[str],
    forms: Mapping[int, Packing],
    linears: Mapping[str, Mapping[int, Packing]] = _NONE,
) -> dict[str, Any]:
    """Return the config that says which matrices are packed, and how.

    Layers that are packed alike share one group of the config; a layer that ``forms`` lacks stays as it is.

    Args:
        experts: templates of the routed experts' matrices, ``model.layers.{layer}.mlp.experts.{expert}.up_proj.weight``.
        others: templates of all other tensors of the checkpoint; the modules of those that no layer packs are listed under
            ``ignore``.
        forms: packing of the experts of each quantised layer.
        linears: for templates of other linear layers, the packing of each decoder layer that stores them so.

    Raises:
        ValueError: no layer is quantised; such a checkpoint has no such config.
    """
    places = {**dict.fromkeys(experts, forms), **linears}
    packings = sorted({packing for stated in places.values() for packing in stated.values()})
    if not packings:
        raise ValueError("no layer is quantised, so there is nothing to state")
    groups = {}
    for number, packing in enumerate(packings):
        layers = {
            template: [layer for layer, own in sorted(stated.items()) if own == packing]
            for template, stated in places.items()
        }
        groups[f"group_{number}"] = {
            "targets": [_pattern(template, "|".join(map(str, own))) for template, own in layers.items() if own],
            "weights": _weights(*packing),
            "input_activations": None,
            "output_activations": None,
            "format": FORMAT,
        }
    ignored = (_pattern(name) for name in others if name.endswith(".weight") and not linears.get(name))
    return {
        "quant_method": METHOD,
        "format": FORMAT,
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": list(dict.fromkeys(ignored)),
    }


def read_quantization(config: Mapping[str, Any], layers: int) -> Packed:
    """Return how the matrices of each quantised layer are packed, from the config of a checkpoint; empty without quantisation.

    Args:
        config: the whole config.json.
        layers: decoder layers of the model.

    Raises:
        CheckpointError: the checkpoint is quantised in another way than ``quantization_config`` writes.
    """
    found = Packed({}, {})
    stated = config.get("quantization_config")
    if stated is None:
        return found
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
    for name, group in groups.items():
        packing, of_experts, of_linears = _read_group(name, group)
        for forms, indices in ((found.experts, of_experts), (found.linears, of_linears)):
            for layer in indices:
                if layer >= layers:
                    raise _unreadable(f"{name} names layer {layer}; the model has {layers}")
                if layer in forms:
                    raise _unreadable(f"layer {layer} is named twice")
                forms[layer] = packing
    return found


def _read_group(name: str, group: Any) -> tuple[Packing, list[int], list[int]]:
    """Return a packing, the layers whose experts it is for, and those whose other linear layers it is for."""
    if not isinstance(group, Mapping) or set(group) - _GROUP_KEYS or group.get("format") != FORMAT:
        raise _unreadable(f"{name} is {str(group)[:80]}")
    if group.get("input_activations") or group.get("output_activations"):
        raise _unreadable(f"{name} quantises activations")
    weights = group.get("weights")
    stated: Mapping[str, Any] = weights if isinstance(weights, Mapping) else {}
    bits, size, symmetric = stated.get("num_bits"), stated.get("group_size"), stated.get("symmetric")
    sound = bits in (4, 8) and isinstance(size, int) and size >= 1 and isinstance(symmetric, bool)
    if not sound or weights != _weights(bits, size, symmetric):  # type: ignore[arg-type]  # checked just before
        raise _unreadable(f"weights of {name} are {weights}; allowed are those of {_weights(4, 128)}, in 4 or 8 bits")
    packing = Packing(bits, size, symmetric)  # type: ignore[arg-type]
    targets = group.get("targets")
    if not isinstance(targets, list | tuple) or not targets:
        raise _unreadable(f"{name} targets {str(targets)[:80]}, not matrices of layers")
    experts: list[str] = []
    linears: set[int] = set()
    for target in targets:
        match = _TARGET.fullmatch(target) if isinstance(target, str) else None
        if match is None:
            raise _unreadable(f"{name} targets {str(target)[:120]}, not one matrix of some layers")
        if r"\d+" in match["after"]:
            experts.append(match["layers"])
        else:
            linears |= {int(layer) for layer in match["layers"].split("|")}
    if experts and (len(experts) != 3 or len(set(experts)) != 1):
        raise _unreadable(
            f"{name} targets {str(targets)[:120]}, not the same layers of three matrices of routed experts"
        )
    return packing, [int(layer) for layer in experts[0].split("|")] if experts else [], sorted(linears)


def _weights(bits: int, group: int, symmetric: bool = True) -> dict[str, Any]:
    return {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
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
