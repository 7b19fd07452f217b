"""What the ``quantization_config`` of a quantised source says about its matrices, in the forms of the tools that write them."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from bench.families.config_values import shown
from bench.families.four_bit_floats import mxfp4, mxfp4_fused, nvfp4, nvfp4_modelopt
from bench.families.stored_formats import (
    FP8,
    GPTQ,
    GPTQ_V2,
    KEY,
    MXFP4,
    NVFP4,
    PACKED,
    Modules,
    Scheme,
    StoredFormats,
)
from methods.framework.errors import CheckpointError
from methods.framework.inventory import Piece

_PLAIN = re.compile(r"[\w.-]+", re.ASCII)


def stored_formats(config: Mapping[str, Any]) -> StoredFormats | None:
    """Return how a source with this config is stored; None where nothing says so, or in a way that is not of this file.

    Raises:
        CheckpointError: it is stored in a known way, but with settings that cannot be read.
    """
    stated = config.get(KEY)
    if not isinstance(stated, Mapping):
        return None
    match stated.get("quant_method"):
        case "fp8":
            return _fp8(stated)
        case "gptq":
            return _gptq(stated)
        case "modelopt":
            return _modelopt(stated)
        case "mxfp4":
            patterns = compiled(
                fnmatch.translate(f"{name}*") for name in listed_modules(stated, "modules_to_not_convert")
            )
            return StoredFormats(((mxfp4_fused(), None),), Modules(patterns=patterns), "modules_to_not_convert")
        case "compressed-tensors":
            return None if _is_ours(stated) else _compressed_tensors(stated)
    return None


def _fp8(stated: Mapping[str, Any]) -> StoredFormats:
    block = stated.get("weight_block_size")
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise unreadable(
            f"weight_block_size is {shown(block)}", "two positive integers, the rows and columns of a block"
        )
    if (code := stated.get("fmt", "e4m3")) not in ("e4m3", "float8_e4m3fn"):
        raise unreadable(f"fmt is {shown(code)}", "e4m3")
    if stated.get("modules_to_convert"):
        raise unreadable("it states modules_to_convert", "matrices of attention and feed-forward networks alone")
    height, width = block

    def pieces(rows: int, columns: int) -> tuple[Piece, ...]:
        scales = (-(-rows // height), -(-columns // width))
        return (Piece("weight", "F8_E4M3", (rows, columns)), Piece("weight_scale_inv", "F32", scales))

    scheme = Scheme(FP8, (height, width), pieces, mark="weight_scale_inv")
    key = "modules_to_not_convert"
    if stated.get(key) is None and stated.get("ignored_layers") is not None:
        key = "ignored_layers"
    listed = listed_modules(stated, key)
    plain = frozenset(name for name in listed if _PLAIN.fullmatch(name))
    return StoredFormats(((scheme, None),), Modules(plain, compiled(n for n in listed if n not in plain)), key)


def _is_ours(stated: Mapping[str, Any]) -> bool:
    """Return whether a config names its targets as ``bench.families.quantization_config`` does."""
    groups = stated.get("config_groups")
    named = (
        [group.get("targets") for group in groups.values() if isinstance(group, Mapping)]
        if isinstance(groups, Mapping)
        else []
    )
    targets = [target for targets in named if isinstance(targets, list | tuple) for target in targets]
    return not targets or all(isinstance(t, str) and t.startswith("re:") and t.endswith("$") for t in targets)


def _compressed_tensors(stated: Mapping[str, Any]) -> StoredFormats:
    """Read the form of the compressed-tensors library: groups of modules, each with a scheme."""
    if (status := stated.get("quantization_status", "compressed")) != "compressed":
        raise unreadable(f"quantization_status is {shown(status)}", "compressed")
    groups = stated.get("config_groups")
    if not isinstance(groups, Mapping) or not groups:
        raise unreadable(f"config_groups is {shown(groups)}", "groups of modules with their schemes")
    schemes = []
    for name, group in groups.items():
        if not isinstance(group, Mapping) or not isinstance(weights := group.get("weights"), Mapping):
            raise unreadable(f"{name} is {shown(group)}", "targets and weights")
        kind = group.get("format") or stated.get("format")
        if kind not in (PACKED, NVFP4, MXFP4):
            raise unreadable(f"format of {name} is {shown(kind)}", f"{PACKED}, {NVFP4} and {MXFP4}")
        scheme = _packed(name, weights) if kind == PACKED else _floats(name, kind, weights)
        schemes.append((scheme, _targets(name, group)))
    listed = listed_modules(stated, "ignore")
    patterns = compiled(entry.removeprefix("re:") for entry in listed if entry.startswith("re:"))
    names = frozenset(entry for entry in listed if not entry.startswith("re:"))

    def entry_of(module: str, within: bool) -> str:
        return f"re:{re.escape(module)}\\..*" if within else module

    return StoredFormats(tuple(schemes), Modules(names, patterns), "ignore", entry_of)


def _floats(name: str, kind: str, weights: Mapping[str, Any]) -> Scheme:
    scheme = nvfp4() if kind == NVFP4 else mxfp4()
    stated = tuple(weights.get(key) for key in ("num_bits", "type", "group_size"))
    if stated != (4, "float", scheme.group[1]) or weights.get("symmetric", True) is not True:
        raise unreadable(
            f"weights of {name} are {shown(dict(weights))}", f"4 bits, float, in groups of {scheme.group[1]}"
        )
    return scheme


def _modelopt(stated: Mapping[str, Any]) -> StoredFormats:
    """Read the form of NVIDIA's ModelOpt, for four bits."""
    if (kind := stated.get("quant_algo")) != "NVFP4":
        raise unreadable(f"quant_algo is {shown(kind)}", "NVFP4 for all matrices")
    if (size := stated.get("group_size", 16)) != 16:
        raise unreadable(f"group_size is {shown(size)}", "16")
    patterns = compiled(fnmatch.translate(name) for name in listed_modules(stated, "ignore") if "*" in name)
    names = frozenset(name for name in listed_modules(stated, "ignore") if "*" not in name)

    def entry_of(module: str, within: bool) -> str:
        return f"{module}*" if within else module

    return StoredFormats(((nvfp4_modelopt(), None),), Modules(names, patterns), "ignore", entry_of)


def _targets(name: str, group: Mapping[str, Any]) -> Modules | None:
    """Return the modules that a group of a config is for; None where it is for all."""
    targets = listed_modules(group, "targets")
    if "Linear" in targets:
        return None
    if not targets:
        raise unreadable(f"{name} has no targets", "Linear, names and regular expressions")
    patterns = compiled(target.removeprefix("re:") for target in targets if target.startswith("re:"))
    return Modules(frozenset(target for target in targets if not target.startswith("re:")), patterns)


def _packed(name: str, weights: Mapping[str, Any]) -> Scheme:
    bits, strategy, size = weights.get("num_bits"), weights.get("strategy"), weights.get("group_size")
    group = 0 if strategy == "channel" else size
    if weights.get("type", "int") != "int" or bits not in (2, 3, 4, 5, 6, 7, 8):
        raise unreadable(f"weights of {name} are {shown(dict(weights))}", "integers of 2 to 8 bits")
    if strategy not in ("group", "channel") or type(group) is not int or (strategy == "group" and group < 1):
        raise unreadable(
            f"weights of {name} have strategy {shown(strategy)} and group_size {shown(size)}", "group or channel"
        )
    symmetric, ordered = (
        weights.get("symmetric", True) is not False,
        weights.get("actorder") in ("group", "dynamic", True),
    )
    each = 32 // bits

    def pieces(rows: int, columns: int) -> tuple[Piece, ...]:
        count = -(-columns // (group or columns))
        found = [
            Piece("weight_packed", "I32", (rows, -(-columns // each))),
            Piece("weight_scale", "BF16", (rows, count)),
            Piece("weight_shape", "I64", (2,)),
        ]
        if not symmetric:
            found.append(Piece("weight_zero_point", "I32", (-(-rows // each), count)))
        if ordered:
            found.append(Piece("weight_g_idx", "I32", (columns,)))
        return tuple(found)

    def why_not(rows: int, columns: int) -> str | None:
        return f"its {columns} inputs are no multiple of the group, {group}" if columns % (group or columns) else None

    return Scheme(PACKED, (1, group), pieces, mark="weight_packed", why_not=why_not, bits=bits)


def _gptq(stated: Mapping[str, Any]) -> StoredFormats:
    """Read the form of AutoGPTQ and GPTQModel."""
    bits, size = stated.get("bits"), stated.get("group_size")
    form = stated.get("checkpoint_format") or stated.get("format") or GPTQ
    if bits not in (2, 4, 8):
        raise unreadable(f"bits is {shown(bits)}", "2, 4 or 8")
    if type(size) is not int or not (size == -1 or size > 0):
        raise unreadable(f"group_size is {shown(size)}", "a positive integer, or -1 for all inputs")
    if form not in (GPTQ, GPTQ_V2):
        raise unreadable(f"format is {shown(form)}", f"{GPTQ} or {GPTQ_V2}")
    group, each = max(size, 0), 32 // bits

    def pieces(rows: int, columns: int) -> tuple[Piece, ...]:
        count = -(-columns // (group or columns))
        return (
            Piece("qweight", "I32", (columns // each, rows)),
            Piece("qzeros", "I32", (count, rows // each)),
            Piece("scales", "F16", (count, rows)),
            Piece("g_idx", "I32", (columns,)),
        )

    def why_not(rows: int, columns: int) -> str | None:
        return f"its shape, {rows} x {columns}, is no multiple of {each}" if rows % each or columns % each else None

    dynamic = stated.get("dynamic") or {}
    if not isinstance(dynamic, Mapping) or not all(isinstance(rule, str) and rule.startswith("-:") for rule in dynamic):
        raise unreadable(f"dynamic is {shown(dynamic)}", "modules that are left out, -: and a regular expression")
    inside = stated.get("modules_in_block_to_quantize")
    only = _inside(inside) if inside else None
    scheme = Scheme(form, (1, group), pieces, mark="qweight", why_not=why_not, bits=bits)
    left_out = Modules(patterns=compiled(rule.removeprefix("-:") for rule in dynamic))
    return StoredFormats(((scheme, only),), left_out, "dynamic", lambda module, within: f"-:{re.escape(module)}")


def _inside(listed: Any) -> Modules:
    """Return the modules that a list of lists of them names by the ends of their names."""
    found: set[str] = set()
    for names in listed if isinstance(listed, list | tuple) else [None]:
        if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
            raise unreadable(f"modules_in_block_to_quantize is {shown(listed)}", "lists of modules")
        found.update(names)
    return Modules(frozenset(found))


def listed_modules(stated: Mapping[str, Any], key: str) -> list[str]:
    """Return the modules that a config lists under ``key``.

    Raises:
        CheckpointError: the list is none, or holds something else than text.
    """
    listed = stated.get(key) or []
    if not isinstance(listed, list | tuple) or not all(isinstance(name, str) for name in listed):
        raise unreadable(f"{key} is {shown(listed)}", "a list of modules")
    return list(listed)


def compiled(patterns: Iterable[str]) -> tuple[re.Pattern[str], ...]:
    """Return regular expressions.

    Raises:
        CheckpointError: one is none.
    """
    found = []
    for pattern in patterns:
        try:
            found.append(re.compile(pattern))
        except re.error as error:
            raise unreadable(f"it names {shown(pattern)}, where {error}", "names and regular expressions") from None
    return tuple(found)


def unreadable(found: str, allowed: str) -> CheckpointError:
    """Return the error for a config that is no config of its kind: what was ``found``, and what is ``allowed``."""
    return CheckpointError(
        f"{KEY} of config.json cannot be read: {found}; allowed: {allowed}. Take the 16-bit checkpoint, or have the library "
        "that wrote this one write it anew"
    )
