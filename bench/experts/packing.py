"""Integers of few bits as the compressed-tensors format "pack-quantized" stores them, packed by that library itself.

Shape letters: O outputs of a matrix, X its inputs, G groups of inputs, W words of 32 bits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from methods.framework.errors import CheckpointError
from methods.kernels.quantisation import Quantised

PACKED, SCALE, SHAPE, ZERO_POINT = "weight_packed", "weight_scale", "weight_shape", "weight_zero_point"
"""Names of the tensors of a matrix, in place of ``weight``; zero points only where there are any."""


def packed(quantised: Quantised, bits: int) -> dict[str, Tensor]:
    """Return ``weight_packed`` int32 [O, W], ``weight_scale`` [O, G] and ``weight_shape`` int64 [2].

    Zero points, if there are any, are ``weight_zero_point``, packed like the codes but along the outputs. The first input lies in
    the lowest bits of the first word, with 2^(bits - 1) added to every code.

    Args:
        quantised: the matrix.
        bits: of a code, 4 or 8.
    """
    # Here, so that commands which pack nothing start without the seconds that this import takes.
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32  # type: ignore[import-untyped]  # the library has no types

    words_OW: Tensor = pack_to_int32(quantised.codes_OX.contiguous(), bits)
    shape = torch.tensor(quantised.codes_OX.shape, dtype=torch.int64)
    tensors = {PACKED: words_OW.contiguous(), SCALE: quantised.scale_OG.contiguous(), SHAPE: shape}
    if quantised.zero_OG is not None:
        tensors[ZERO_POINT] = pack_to_int32(quantised.zero_OG.contiguous(), bits, packed_dim=0).contiguous()
    return tensors


def unpacked(tensors: Mapping[str, Tensor], bits: int, group: int, symmetric: bool = True) -> Quantised:
    """Return the integers of the tensors that ``packed`` makes.

    Args:
        tensors: by name.
        bits: of a code, 4 or 8.
        group: inputs that share a scale.
        symmetric: whether there are no zero points.

    Raises:
        CheckpointError: the tensors do not belong together, or were made with other bits or another group.
    """
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    words_OW, scale_OG, shape = tensors[PACKED], tensors[SCALE], tensors[SHAPE].tolist()
    outputs, inputs = shape if len(shape) == 2 else (-1, -1)
    expected = {PACKED: (outputs, -(-inputs * bits // 32)), SCALE: (outputs, -(-inputs // group))}
    if not symmetric:
        expected[ZERO_POINT] = (-(-outputs * bits // 32), -(-inputs // group))
    for name, size in expected.items():
        if tuple(tensors[name].shape) != size:
            raise CheckpointError(
                f"{name} of a matrix of shape {shape} in {bits} bits with groups of {group} must be {list(size)}, found "
                f"{list(tensors[name].shape)}: the file is damaged, or its quantization_config belongs to another; write "
                "or fetch the checkpoint again"
            )
    zero_OG = None
    if not symmetric:
        zero_OG = unpack_from_int32(tensors[ZERO_POINT], bits, scale_OG.shape, packed_dim=0)
    return Quantised(unpack_from_int32(words_OW, bits, torch.Size(shape)), scale_OG, zero_OG)
