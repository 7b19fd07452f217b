"""Tiny checkpoints that are stored as models are published: in types that differ, with settings of generation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from bench.checkpoint.checkpoint import SINGLE, Checkpoint
from tests.support.tiny import tiny_checkpoint

GENERATION = {"eos_token_id": [1, 5, 9], "pad_token_id": 3, "repetition_penalty": 1.3, "max_new_tokens": 7}
CORRECTION = "e_score_correction_bias"


def published(family: str, folder: Path, generation: bool = True, **overrides: Any) -> Checkpoint:
    """Return a checkpoint as models are published: bfloat16, correction biases of some size in float32, settings of its own."""
    tiny_checkpoint(family, folder, dtype=torch.bfloat16, **overrides)
    tensors = load_file(folder / SINGLE)
    generator = torch.Generator().manual_seed(5)
    for name, tensor in tensors.items():
        if name.endswith(CORRECTION):  # close together and far from zero: bfloat16 makes them equal
            tensors[name] = 8.0 + 0.01 * torch.randn(tensor.shape, generator=generator)
    save_file(tensors, folder / SINGLE, metadata={"format": "pt"})
    (folder / "generation_config.json").unlink(missing_ok=True)
    if generation:
        (folder / "generation_config.json").write_text(json.dumps(GENERATION))
    return Checkpoint.open(folder)


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """Return the type of every parameter and buffer by name."""
    return {name: t.dtype for name, t in (*model.named_parameters(), *model.named_buffers())}
