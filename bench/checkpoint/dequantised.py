"""The values that codes and scales of a quantised source stand for, as the definition of each format gives them.

Letters: M rows and N columns of a matrix, G groups of columns, W words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from bench.families.stored_formats import (
    FP8,
    GPTQ,
    GPTQ_V2,
    MXFP4,
    MXFP4_FUSED,
    NVFP4,
    NVFP4_MODELOPT,
    PACKED,
    VALUES,
)
from methods.framework.errors import CheckpointError
from methods.framework.inventory import Storage, TensorEntry

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""Values of the codes of four bits: a sign, two bits of exponent, one of mantissa."""

Pieces = Mapping[str, Tensor]
"""Tensors of a matrix by their own names."""


def dequantised(entry: TensorEntry, pieces: Sequence[Tensor]) -> Tensor:
    """Return the values of a matrix, (M, N), unrounded unless its format says in which type they are.

    Args:
        entry: the matrix, which is stored as codes.
        pieces: its tensors, in the order of ``entry.stored``.

    Raises:
        CheckpointError: the tensors contradict each other.
    """
    assert entry.stored is not None
    named = {piece.name: tensor for piece, tensor in zip(entry.stored.pieces, pieces, strict=True)}
    return _RULES[entry.stored.format](entry, entry.stored, named)


def _fp8(entry: TensorEntry, storage: Storage, pieces: Pieces) -> Tensor:
    codes_MN = pieces["weight"].float()
    return codes_MN * spread(pieces["weight_scale_inv"].float(), storage.group, entry.shape)


def _packed(entry: TensorEntry, storage: Storage, pieces: Pieces) -> Tensor:
    """Return products in the type of the scales, as the compressed-tensors library forms them."""
    rows, columns = entry.shape
    if pieces["weight_shape"].tolist() != [rows, columns]:
        raise CheckpointError(
            f"weight_shape of {entry.name} is {pieces['weight_shape'].tolist()}, its config gives {[rows, columns]}; fetch the "
            "checkpoint again"
        )
    codes_MN = unpacked(pieces["weight_packed"], storage.bits)[:, :columns]
    scale_MG = pieces["weight_scale"]
    places_N = _groups(entry, pieces.get("weight_g_idx"), storage.group[1], scale_MG.shape[1])
    if (zero := pieces.get("weight_zero_point")) is None:
        zero_MN = torch.tensor(1 << (storage.bits - 1))
    else:
        zero_MN = unpacked(zero.T, storage.bits)[:, :rows].T[:, places_N]
    return (codes_MN - zero_MN).to(scale_MG.dtype) * scale_MG[:, places_N]


def _gptq(entry: TensorEntry, storage: Storage, pieces: Pieces) -> Tensor:
    codes_NM = unpacked(pieces["qweight"].T, storage.bits).T
    scale_GM = pieces["scales"]
    zero_GM = unpacked(pieces["qzeros"], storage.bits) + (1 if storage.format == GPTQ else 0)
    places_N = _groups(entry, pieces["g_idx"], storage.group[1], scale_GM.shape[0])
    return ((codes_NM - zero_GM[places_N]).to(scale_GM.dtype) * scale_GM[places_N]).T.contiguous()


def _nvfp4(entry: TensorEntry, storage: Storage, pieces: Pieces) -> Tensor:
    """Return codes times the quotient of both scales, as the compressed-tensors library forms it."""
    scale = pieces["weight_scale"].float() / pieces["weight_global_scale"].float()
    return halves(pieces["weight_packed"]) * spread(scale, storage.group, entry.shape)


def _nvfp4_modelopt(entry: TensorEntry, storage: Storage, pieces: Pieces) -> Tensor:
    scale = pieces["weight_scale"].float() * pieces["weight_scale_2"].float()
    return halves(pieces["weight"]) * spread(scale, storage.group, entry.shape)


def _mxfp4(entry: TensorEntry, storage: Storage, pieces: Pieces) -> Tensor:
    codes, exponents = (pieces[piece.name] for piece in storage.pieces[:2])
    return torch.ldexp(halves(codes), spread(exponents.int() - 127, storage.group, entry.shape))


def halves(bytes_MX: Tensor) -> Tensor:
    """Return the values of codes of four bits, two in each byte, the one in the lower half first."""
    codes = torch.stack([bytes_MX & 15, bytes_MX >> 4], dim=-1).flatten(1)
    return torch.tensor(_E2M1)[codes.int()]


def _groups(entry: TensorEntry, stated_N: Tensor | None, size: int, groups: int) -> Tensor:
    """Return the group of each input of a matrix: the stated one, or ``size`` successive inputs share one.

    Raises:
        CheckpointError: an input is in a group that does not exist.
    """
    if stated_N is None:
        return torch.arange(entry.shape[1]) // size
    if bool(((stated_N < 0) | (stated_N >= groups)).any()):
        raise CheckpointError(
            f"{entry.name} has {groups} groups of inputs, but an input in group {int(stated_N.max())}; fetch it again"
        )
    return stated_N.long()


def unpacked(words_MW: Tensor, bits: int) -> Tensor:
    """Return the codes in words of 32 bits as they lie there, from 0 on, the lowest bits first; some may be filling."""
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    return ((words_MW.unsqueeze(-1) >> shifts) & ((1 << bits) - 1)).flatten(1)


def spread(scales: Tensor, group: tuple[int, int], shape: Sequence[int]) -> Tensor:
    """Return for each entry of a matrix of ``shape`` the scale of its block.

    Args:
        scales: one for each block; those at the lower and right edge may reach over it.
        group: rows and columns of a block.
        shape: M and N.
    """
    for axis in (0, 1):
        scales = scales.repeat_interleave(group[axis], dim=axis).narrow(axis, 0, shape[axis])
    return scales


_RULES: Mapping[str, Callable[[TensorEntry, Storage, Pieces], Tensor]] = {
    FP8: _fp8,
    PACKED: _packed,
    GPTQ: _gptq,
    GPTQ_V2: _gptq,
    NVFP4: _nvfp4,
    NVFP4_MODELOPT: _nvfp4_modelopt,
    MXFP4: _mxfp4,
    MXFP4_FUSED: _mxfp4,
    VALUES: lambda entry, storage, pieces: pieces["weight"],
}
