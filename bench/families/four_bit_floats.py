"""Schemes of matrices in floats of four bits (e2m1), two in a byte, the first in the lower half.

Letters: M rows and N columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable

from bench.families.stored_formats import MXFP4, MXFP4_FUSED, NVFP4, NVFP4_MODELOPT, Scheme
from methods.framework.inventory import Piece

_SIXTEEN, _THIRTY_TWO = 16, 32
"""Inputs that share a scale."""


def nvfp4() -> Scheme:
    """Return the scheme of NVFP4 as the compressed-tensors library stores it."""
    return _scheme(NVFP4, _SIXTEEN, "weight_packed", "weight_scale", Piece("weight_global_scale", "F32", (1,)))


def nvfp4_modelopt() -> Scheme:
    """Return the scheme of NVFP4 as ModelOpt stores it."""
    return _scheme(NVFP4_MODELOPT, _SIXTEEN, "weight", "weight_scale", Piece("weight_scale_2", "F32", ()))


def mxfp4() -> Scheme:
    """Return the scheme of MXFP4 as the compressed-tensors library stores it."""
    return _scheme(MXFP4, _THIRTY_TWO, "weight_packed", "weight_scale")


def mxfp4_fused() -> Scheme:
    """Return the scheme of MXFP4 as gpt-oss stores it, for the part of one matrix of one expert."""
    return _scheme(MXFP4_FUSED, _THIRTY_TWO, "blocks", "scales", fused=True)


def _scheme(name: str, group: int, codes: str, scales: str, last: Piece | None = None, fused: bool = False) -> Scheme:
    """Return a scheme.

    Args:
        name: of the format.
        group: inputs that share a scale.
        codes: name of the piece of the codes.
        scales: name of that of the scales.
        last: piece with the scale of the whole matrix, where there is one.
        fused: whether experts lie in one tensor.
    """
    kind = "F8_E4M3" if group == _SIXTEEN else "U8"

    def pieces(rows: int, columns: int) -> tuple[Piece, ...]:
        found = (Piece(codes, "U8", (rows, columns // 2)), Piece(scales, kind, (rows, columns // group)))
        return found if last is None else (*found, last)

    why_not: Callable[[int, int], str | None] = lambda rows, columns: (  # noqa: E731  # one line of a table
        f"its {columns} inputs are no multiple of {group}" if columns % group else None
    )
    mark = codes if last is None or codes != "weight" else last.name
    return Scheme(name, (1, group), pieces, mark, why_not, bits=4, fused=fused)
