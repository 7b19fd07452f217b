"""Which matrices of a quantised source are stored as codes with scales, and how, as its ``quantization_config`` says.

Only shapes and names stand here; the values that the codes stand for are made in ``bench.checkpoint.dequantised``.
Letters: M rows and N columns of a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from bench.families.config_values import shown
from methods.framework.errors import CheckpointError
from methods.framework.inventory import EXPERT_ROLES, Inventory, Piece, Storage, TensorEntry

KEY = "quantization_config"
FP8 = "fp8"
"""Codes e4m3 with one scale for each block of rows and columns: ``weight``, ``weight_scale_inv``."""

_QUANTISED = ("attention.", "dense.", "shared.gate", "shared.up", "shared.down", *EXPERT_ROLES)
"""Beginnings of the roles of matrices that are stored as codes where the config does not except them."""
_WEIGHT = ".weight"
_PLAIN = re.compile(r"[\w.-]+", re.ASCII)


@dataclass(frozen=True)
class Excepted:
    """Modules that a config excepts from quantisation.

    Args:
        names: of modules, or the last parts of names; what lies within an excepted module is excepted too.
        patterns: regular expressions for whole names.
    """

    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    def __contains__(self, module: str) -> bool:
        """Return whether the module of this name is excepted."""
        if self.names:
            parts = module.split(".")
            ends = range(1, len(parts) + 1)
            if any(".".join(parts[:end]) in self.names or ".".join(parts[end - 1 :]) in self.names for end in ends):
                return True
        return any(pattern.fullmatch(module) for pattern in self.patterns)


@dataclass(frozen=True)
class Layout:
    """How matrices are stored.

    Args:
        format: one of the formats of this file.
        group: rows and columns that share a scale.
        make: the pieces of a matrix of M rows and N columns, the codes first.
        mark: piece that only matrices of this format have.
        why_not: why a matrix of M rows and N columns cannot be stored so, or None.
    """

    format: str
    group: tuple[int, int]
    make: Callable[[int, int], tuple[Piece, ...]]
    mark: str
    why_not: Callable[[int, int], str | None] = field(default=lambda rows, columns: None)

    def storage(self, shape: tuple[int, ...]) -> Storage:
        """Return how a matrix of ``shape`` is stored."""
        rows, columns = shape
        return Storage(self.format, self.group, self.make(rows, columns))


@dataclass(frozen=True)
class StoredFormats:
    """How the matrices of a source are stored.

    Args:
        layout: that of all matrices that are not excepted.
        excepted: modules whose matrices hold their values.
    """

    layout: Layout
    excepted: Excepted

    def of(self, entry: TensorEntry) -> Layout | None:
        """Return the layout in which ``entry`` may be stored; None for excepted modules and for what is no matrix."""
        if len(entry.shape) != 2 or not entry.template.endswith(_WEIGHT):
            return None
        return None if module_of(entry) in self.excepted else self.layout

    def expected(self, inventory: Inventory) -> Inventory:
        """Return ``inventory``, read from a config alone, with the matrices stored that such a config usually means."""

        def stored(entry: TensorEntry) -> TensorEntry:
            layout = self.of(entry) if entry.role.startswith(_QUANTISED) else None
            if layout is None or layout.why_not(*entry.shape) is not None:
                return entry
            return replace(entry, stored=layout.storage(entry.shape))

        layers = (
            layer if layer.form is not None else replace(layer, tensors=tuple(map(stored, layer.tensors)))
            for layer in inventory.layers
        )
        return inventory.with_layers(tuple(layers))


def module_of(entry: TensorEntry) -> str:
    """Return the name of the module whose weight ``entry`` is."""
    return entry.name.removesuffix(_WEIGHT)


def is_quantised_role(role: str) -> bool:
    """Return whether matrices of ``role`` are stored as codes where a config does not except them."""
    return role.startswith(_QUANTISED)


def stored_formats(config: Mapping[str, Any]) -> StoredFormats | None:
    """Return how a source with this config is stored; None where nothing says so, or in a way that is not of this file.

    Raises:
        CheckpointError: it is stored in a known way, but with settings that cannot be read.
    """
    stated = config.get(KEY)
    if not isinstance(stated, Mapping):
        return None
    if stated.get("quant_method") == FP8:
        return _fp8(stated)
    return None


def excepted_key(stated: Mapping[str, Any]) -> str:
    """Return the key under which a quantization_config lists the modules that it excepts."""
    known = ("modules_to_not_convert", "ignored_layers", "ignore")
    return next((key for key in known if stated.get(key) is not None), known[0])


def _fp8(stated: Mapping[str, Any]) -> StoredFormats:
    block = stated.get("weight_block_size")
    if not isinstance(block, list | tuple) or len(block) != 2 or not all(type(n) is int and n > 0 for n in block):
        raise unreadable(
            f"weight_block_size is {shown(block)}", "two positive integers, the rows and columns of a block"
        )
    if (activation := stated.get("activation_scheme", "dynamic")) != "dynamic":
        raise unreadable(f"activation_scheme is {shown(activation)}", "dynamic, which needs no scales of activations")
    if (code := stated.get("fmt", "e4m3")) not in ("e4m3", "float8_e4m3fn"):
        raise unreadable(f"fmt is {shown(code)}", "e4m3")
    if stated.get("modules_to_convert"):
        raise unreadable("it states modules_to_convert", "matrices of attention and feed-forward networks alone")
    height, width = block

    def pieces(rows: int, columns: int) -> tuple[Piece, ...]:
        scales = (-(-rows // height), -(-columns // width))
        return (Piece("weight", "F8_E4M3", (rows, columns)), Piece("weight_scale_inv", "F32", scales))

    layout = Layout(FP8, (height, width), pieces, mark="weight_scale_inv")
    return StoredFormats(layout, _names(stated))


def _names(stated: Mapping[str, Any]) -> Excepted:
    """Return the modules that a config in transformers' own form excepts: names, or regular expressions for them."""
    listed = listed_modules(stated)
    plain = frozenset(name for name in listed if _PLAIN.fullmatch(name))
    return Excepted(plain, compiled(name for name in listed if name not in plain))


def listed_modules(stated: Mapping[str, Any]) -> list[str]:
    """Return the modules that a config lists as excepted.

    Raises:
        CheckpointError: the list is none, or holds something else than text.
    """
    key = excepted_key(stated)
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
            raise unreadable(f"it excepts {shown(pattern)}, where {error}", "names and regular expressions") from None
    return tuple(found)


def unreadable(found: str, allowed: str) -> CheckpointError:
    """Return the error for a config that is no config of its kind: what was ``found``, and what is ``allowed``."""
    return CheckpointError(
        f"{KEY} of config.json cannot be read: {found}; allowed: {allowed}. Take the 16-bit checkpoint, or have the library "
        "that wrote this one write it anew"
    )
