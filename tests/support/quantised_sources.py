"""Quantised sources as other tools write them, made from tiny models by the definition of each format.

Shape letters: M rows and N columns of a matrix.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from bench.checkpoint.checkpoint import SINGLE
from bench.families.family import family_of
from bench.families.stored_formats import is_quantised_role
from tests.support.tiny import tiny_checkpoint

BLOCK = 16
"""Rows and columns of a block, small as the matrices are."""


def quantised(
    family: str,
    folder: Path,
    config: dict[str, Any],
    encode: Callable[[Tensor], dict[str, Tensor]],
    plain: Callable[[str], bool] = lambda name: False,
) -> Path:
    """Write a quantised source to ``folder`` and return it.

    Args:
        family: of the tiny model that it is made from, in bfloat16.
        folder: to create.
        config: its quantization_config.
        encode: gives the tensors of a matrix by the last part of their names.
        plain: whether a matrix of this name keeps its values.
    """
    tiny_checkpoint(family, folder, dtype=torch.bfloat16)
    stated = json.loads((folder / "config.json").read_bytes())
    inventory = family_of(stated).inventory(stated)
    roles = {e.name: e.role for e in inventory.tensors() if len(e.shape) == 2 and e.name.endswith(".weight")}
    written: dict[str, Tensor] = {}
    for name, value in load_file(folder / SINGLE).items():
        if is_quantised_role(roles.get(name, "")) and not plain(name):
            written |= {name.removesuffix("weight") + part: tensor for part, tensor in encode(value).items()}
        else:
            written[name] = value
    save_file(written, folder / SINGLE, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**stated, "quantization_config": config}))
    return folder


def fp8_config(**more: Any) -> dict[str, Any]:
    """Return the quantization_config of DeepSeek-V3, with small blocks."""
    return {
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "quant_method": "fp8",
        "weight_block_size": [BLOCK, BLOCK],
        **more,
    }


def fp8_encoded(value_MN: Tensor) -> dict[str, Tensor]:
    """Return codes and scales of a matrix: the largest entry of each block becomes 448."""
    height, width = value_MN.shape
    codes = torch.empty(height, width, dtype=torch.float8_e4m3fn)
    scales = torch.empty(-(-height // BLOCK), -(-width // BLOCK))
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            block = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = value_MN[block].float().abs().max() / 448
            codes[block] = (value_MN[block].float() / scales[i, j]).to(torch.float8_e4m3fn)
    return {"weight": codes, "weight_scale_inv": scales}


def fp8_source(family: str, folder: Path, plain: Callable[[str], bool] = lambda name: False, **more: Any) -> Path:
    """Write a source in FP8 with block scales to ``folder`` and return it.

    Args:
        family: of the tiny model that it is made from.
        folder: to create.
        plain: whether a matrix of this name keeps its values.
        more: keys of its quantization_config.
    """
    return quantised(family, folder, fp8_config(**more), fp8_encoded, plain)


def packed_config(bits: int = 4, group: int = 16, symmetric: bool = True, **weights: Any) -> dict[str, Any]:
    """Return a quantization_config of the compressed-tensors library with one group for everything linear.

    Args:
        bits: of a code.
        group: inputs that share a scale.
        symmetric: whether there are no zero points.
        weights: further keys of the scheme.
    """
    scheme = {
        "num_bits": bits,
        "type": "int",
        "symmetric": symmetric,
        "strategy": "group",
        "group_size": group,
        **weights,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": scheme, "input_activations": None}},
        "ignore": ["lm_head", "re:.*mlp.gate$"],
        "kv_cache_scheme": None,
    }


def words(codes_MN: Tensor, bits: int) -> Tensor:
    """Return codes from 0 on in words of 32 bits along the rows, the first in the lowest bits."""
    each = 32 // bits
    rows, columns = codes_MN.shape
    packed = torch.zeros(rows, -(-columns // each), dtype=torch.int64)
    for column in range(columns):
        packed[:, column // each] |= codes_MN[:, column].long() << (bits * (column % each))
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).to(torch.int32)


def grouped(value_MN: Tensor, bits: int, order_N: Tensor, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes [M, N], scales and zeros [M, G] of a matrix, codes and zeros from 0 on.

    Args:
        value_MN: the matrix.
        bits: of a code.
        order_N: group of each input.
        groups: their number, G.
    """
    rows = value_MN.shape[0]
    codes_MN = torch.zeros(value_MN.shape, dtype=torch.int32)
    scale_MG, zero_MG = torch.zeros(rows, groups), torch.zeros(rows, groups, dtype=torch.int32)
    for number in range(groups):
        part = value_MN[:, order_N == number].float()
        low, high = part.amin(1), part.amax(1)
        scale_MG[:, number] = (high - low) / (2**bits - 1)
        zero_MG[:, number] = (-low / scale_MG[:, number]).round().clamp(1, 2**bits - 1).int()
        codes = (part / scale_MG[:, number, None]).round() + zero_MG[:, number, None]
        codes_MN[:, order_N == number] = codes.clamp(0, 2**bits - 1).int()
    return codes_MN, scale_MG, zero_MG


def packed_encoded(
    bits: int, group: int, symmetric: bool, ordered: bool = False
) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what makes the tensors of a packed matrix; ``ordered`` gives inputs to groups at random.

    Args:
        bits: of a code.
        group: inputs that share a scale.
        symmetric: whether there are no zero points.
        ordered: whether inputs are in groups in another order than they stand.
    """

    def encode(value_MN: Tensor) -> dict[str, Tensor]:
        rows, columns = value_MN.shape
        order_N = torch.arange(columns) // group
        if ordered:
            order_N = order_N[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        codes_MN, scale_MG, zero_MG = grouped(value_MN, bits, order_N, columns // group)
        stored = {
            "weight_packed": words(codes_MN, bits),
            "weight_scale": scale_MG.to(torch.bfloat16),
            "weight_shape": torch.tensor([rows, columns]),
        }
        if not symmetric:
            stored["weight_zero_point"] = words(zero_MG.T, bits).T.contiguous()
        if ordered:
            stored["weight_g_idx"] = order_N.int()
        return stored

    return encode


def gptq_config(bits: int = 4, group: int = 16, **more: Any) -> dict[str, Any]:
    """Return a quantization_config as GPTQModel writes it; ``more`` are further keys."""
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **more}


def gptq_encoded(bits: int, group: int, less: int = 1, ordered: bool = False) -> Callable[[Tensor], dict[str, Tensor]]:
    """Return what makes the tensors of a matrix in GPTQ's form.

    Args:
        bits: of a code.
        group: inputs that share a scale; -1 for all.
        less: what is taken from each zero before it is stored: 1 in the first form, 0 in the second.
        ordered: whether inputs are in groups in another order than they stand.
    """

    def encode(value_MN: Tensor) -> dict[str, Tensor]:
        columns = value_MN.shape[1]
        size = columns if group == -1 else group
        order_N = torch.arange(columns) // size
        if ordered:
            order_N = order_N[torch.randperm(columns, generator=torch.Generator().manual_seed(columns))]
        codes_MN, scale_MG, zero_MG = grouped(value_MN, bits, order_N, columns // size)
        return {
            "qweight": words(codes_MN, bits).T.contiguous(),
            "qzeros": words(zero_MG.T - less, bits),
            "scales": scale_MG.T.to(torch.float16).contiguous(),
            "g_idx": order_N.int(),
        }

    return encode
