"""How the matrices of a quantised source are stored as codes with scales: formats, and which matrices have which.

Only shapes and names stand here. What a config says is read in ``bench.families.source_formats``, the values that the codes stand
for are made in ``bench.checkpoint.dequantised``. Letters: M rows and N columns of a matrix.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from methods.framework.inventory import EXPERT_ROLES, Inventory, Piece, Storage, TensorEntry

KEY = "quantization_config"
FP8 = "fp8"
"""Codes e4m3 with one scale for each block of rows and columns: ``weight``, ``weight_scale_inv``."""
PACKED = "pack-quantized"
"""Integers in words of 32 bits along the inputs, scales of groups of inputs: ``weight_packed``, ``weight_scale``,
``weight_shape``, and ``weight_zero_point`` and ``weight_g_idx`` where there are any."""
GPTQ, GPTQ_V2 = "gptq", "gptq_v2"
"""Integers in words of 32 bits, transposed, with a zero for each group: ``qweight``, ``qzeros``, ``scales``, ``g_idx``. The first
form holds each zero less one."""
NVFP4, NVFP4_MODELOPT = "nvfp4-pack-quantized", "nvfp4"
"""Codes e2m1, two in a byte, scales e4m3 of 16 inputs, one scale for the matrix: of compressed-tensors, which divides by it
(``weight_packed``, ``weight_scale``, ``weight_global_scale``), and of ModelOpt, which multiplies (``weight``, ``weight_scale``,
``weight_scale_2``)."""
MXFP4, MXFP4_FUSED = "mxfp4-pack-quantized", "mxfp4"
"""Codes e2m1, two in a byte, and powers of two as scales of 32 inputs: of compressed-tensors (``weight_packed``,
``weight_scale``), and of gpt-oss, where all experts of a layer lie in one tensor (``_blocks``, ``_scales``)."""
VALUES = "values"
"""No codes, but scales of what goes through the module: ``weight``, ``k_scale``."""
COMPANIONS = ("input_scale", "k_scale", "v_scale", "input_global_scale", "activation_scale")
"""Scales of activations that may lie beside a matrix; its values do not depend on them."""

_QUANTISED = ("attention.", "dense.", "shared.gate", "shared.up", "shared.down", *EXPERT_ROLES)
"""Beginnings of the roles of matrices that are stored as codes where the config does not except them."""
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Modules:
    """Modules that a config names.

    Args:
        names: of modules, or the last parts of names; what lies within such a module is meant too.
        patterns: regular expressions for the beginnings of names.
    """

    names: frozenset[str] = frozenset()
    patterns: tuple[re.Pattern[str], ...] = ()

    def __contains__(self, module: str) -> bool:
        """Return whether the module of this name is meant."""
        if self.names:
            parts = module.split(".")
            ends = range(1, len(parts) + 1)
            if any(".".join(parts[:end]) in self.names or ".".join(parts[end - 1 :]) in self.names for end in ends):
                return True
        return any(pattern.match(module) for pattern in self.patterns)


@dataclass(frozen=True)
class Scheme:
    """How matrices are stored.

    Args:
        format: one of the formats of this file.
        group: rows and columns that share a scale; 0 stands for all.
        make: the pieces of a matrix of M rows and N columns, the codes first.
        mark: piece that tells that a matrix is stored so.
        why_not: why a matrix of M rows and N columns cannot be stored so, or None.
        bits: of a code.
        fused: whether the matrices of all experts of a layer lie in one tensor.
    """

    format: str
    group: tuple[int, int]
    make: Callable[[int, int], tuple[Piece, ...]]
    mark: str
    why_not: Callable[[int, int], str | None] = field(default=lambda rows, columns: None)
    bits: int = 8
    fused: bool = False

    def storage(self, shape: tuple[int, ...]) -> Storage:
        """Return how a matrix of ``shape`` is stored."""
        rows, columns = shape
        group = (self.group[0] or rows, self.group[1] or columns)
        return Storage(self.format, group, self.make(rows, columns), self.bits)


@dataclass(frozen=True)
class StoredFormats:
    """How the matrices of a source are stored.

    Args:
        schemes: each with the modules that have it, None for all; the first that fits counts.
        excepted: modules whose matrices hold their values.
        key: under which the config lists ``excepted``; for GPTQ the keys of a mapping.
        entry_of: how that list names a module, and, with True, all that lies within one.
    """

    schemes: tuple[tuple[Scheme, Modules | None], ...]
    excepted: Modules
    key: str
    entry_of: Callable[[str, bool], str] = field(default=lambda module, within: module)

    def of(self, entry: TensorEntry) -> Scheme | None:
        """Return how ``entry`` may be stored; None for excepted modules and for what is no matrix."""
        if len(entry.shape) != 2 or not entry.template.endswith(_WEIGHT):
            return None
        module = module_of(entry)
        if module in self.excepted:
            return None
        return next((scheme for scheme, only in self.schemes if only is None or module in only), None)

    def expected(self, inventory: Inventory) -> Inventory:
        """Return ``inventory``, read from a config alone, with the matrices stored that such a config usually means."""

        def stored(entry: TensorEntry) -> TensorEntry:
            scheme = self.of(entry) if is_quantised_role(entry.role) else None
            if scheme is None or scheme.why_not(*entry.shape) is not None:
                return entry
            return replace(entry, stored=scheme.storage(entry.shape))

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


def holds_values(entry: TensorEntry) -> bool:
    """Return whether ``entry`` is stored as its values."""
    return entry.stored is None or entry.stored.format == VALUES
