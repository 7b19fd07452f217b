"""Whole matrices from what is stored of an expert in another form.

Letters: D hidden size, F expert width, M and N rows and columns of a matrix.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.experts.packing import PACKED as PACKED_NAME
from bench.experts.packing import SCALE as SCALE_NAME
from bench.experts.packing import SHAPE as SHAPE_NAME
from bench.experts.packing import ZERO_POINT as ZERO_POINT_NAME
from bench.experts.packing import unpacked
from methods.framework.forms import COLUMNS, LEFT, MIX, PACKED, RIGHT, SCALE, SHAPE, SHARED_PREFIX, ZERO_POINT
from methods.framework.inventory import EXPERT_ROLES, ExpertForm, Packing, TensorEntry
from methods.kernels.merging import ExpertMatrices
from methods.kernels.quantisation import dequantised
from methods.kernels.shared_bases import restored

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

PART_NAMES = {PACKED: PACKED_NAME, SCALE: SCALE_NAME, SHAPE: SHAPE_NAME}
"""Parts that every packed matrix has, and how the compressed-tensors library calls them."""
ALL_PART_NAMES = PART_NAMES | {ZERO_POINT: ZERO_POINT_NAME}
"""The same with zero points, which only some have."""

Stored = dict[str, Tensor]
"""Tensors of one expert, or of what the experts of a layer share, by role."""


def whole_expert(stored: Mapping[str, Tensor], shared: Mapping[str, Tensor], form: ExpertForm) -> ExpertMatrices:
    """Return the three matrices that ``stored`` stands for, in float32 (float64 where something stored is).

    Args:
        stored: tensors of the expert by role.
        shared: tensors that all experts of its layer share.
        form: of the layer.
    """
    return ExpertMatrices(*(whole_matrix(role, stored, shared, form) for role in EXPERT_ROLES))


def whole_matrix(role: str, stored: Mapping[str, Tensor], shared: Mapping[str, Tensor], form: ExpertForm) -> Tensor:
    """Return the matrix of ``role``, shape (M, N): left right, plus base; mixtures of bases; codes times scales; or as it is.

    Args:
        role: ``expert.gate``, ``expert.up`` or ``expert.down``.
        stored: tensors of the expert by role.
        shared: those of the layer that its experts share, by role.
        form: how the experts are stored.
    """
    if role in stored:
        return _wide(stored[role])
    if f"{role}.{PACKED}" in stored:
        assert form.bits is not None
        return _wide(unpacked_matrix(role, stored, form.bits))
    left = _wide(stored[f"{role}.{LEFT}"])
    if f"{role}.{MIX}" in stored:
        assert form.bases is not None
        bases = _wide(shared[shared_role(role)])
        return restored(left, stored[f"{role}.{MIX}"].to(left.dtype), bases, form.bases[2])
    matrix_MN = left @ _wide(stored[f"{role}.{RIGHT}"])
    base = shared.get(shared_role(role))
    if base is None:
        return matrix_MN
    columns = shared.get(f"{shared_role(role)}.{COLUMNS}")
    if columns is None:
        return matrix_MN + _wide(base)
    return matrix_MN.index_add(1, columns.long(), _wide(base))


def unpacked_matrix(role: str, stored: Mapping[str, Tensor], packing: Packing) -> Tensor:
    """Return the values that a matrix in few bits stands for, in the type of its scales.

    Args:
        role: of the matrix.
        stored: its parts by role.
        packing: how it is packed.
    """
    parts = {name: stored[f"{role}.{part}"] for part, name in ALL_PART_NAMES.items() if f"{role}.{part}" in stored}
    codes = unpacked(parts, *packing)
    return dequantised(codes, codes.scale_OG.dtype)


def stored_linear(checkpoint: Checkpoint, whole: TensorEntry) -> Tensor:
    """Return the values of a linear layer beside the experts that is stored in few bits, in the type of its scales.

    Args:
        checkpoint: any.
        whole: the matrix, as ``methods.framework.linears.whole_linear`` gives it.
    """
    assert whole.layer is not None
    layer = checkpoint.inventory.layers[whole.layer]
    assert layer.linear_bits is not None
    stored = {e.role: checkpoint.read(e) for e in layer.tensors if e.role.rpartition(".")[0] == whole.role}
    return unpacked_matrix(whole.role, stored, layer.linear_bits)


def shared_role(role: str) -> str:
    """Return the role of what the experts of a layer share of their matrix ``role``."""
    return SHARED_PREFIX + role.partition(".")[2]


def stored_expert(checkpoint: Checkpoint, layer: int, expert: int) -> ExpertMatrices:
    """Return the whole matrices of an expert of ``checkpoint``, whatever its form; (F, D), (F, D), (D, F) with its own F.

    What the layer shares is read with each expert.

    Args:
        checkpoint: any.
        layer: index of a decoder layer with experts.
        expert: index among those that the layer stores.
    """
    inventory = checkpoint.inventory.layers[layer]
    own = {e.role: checkpoint.read(e) for e in inventory.tensors if e.expert == expert}
    shared = {e.role: checkpoint.read(e) for e in inventory.tensors if e.role.startswith(SHARED_PREFIX)}
    return whole_expert(own, shared, inventory.form or ExpertForm())


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
