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
