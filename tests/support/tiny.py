"""Tiny models for tests. They live in the package, since ``moebench check`` uses them too; here each checkpoint is built once."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import torch

from bench.models import tiny
from bench.models.tiny import FAMILIES, tiny_config, tiny_model, tiny_tokens
from tests.support.built_once import built_once

__all__ = ["FAMILIES", "tiny_checkpoint", "tiny_config", "tiny_model", "tiny_tokens"]


def tiny_checkpoint(
    family: str, folder: Path | None = None, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any
) -> Path:
    """Return the folder of a tiny checkpoint without tokenizer.

    Args:
        family: its family.
        folder: where a copy goes, for a test that writes into it or needs its name; None: one that all tests read.
        seed: of its weights; torch's generator has this seed afterwards, whether or not the checkpoint was there before.
        dtype: of its weights.
        overrides: keys of its config.
    """
    settings = repr((seed, dtype, sorted(overrides.items())))
    name = f"{family}-{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
    shared = built_once(name, lambda part: tiny.tiny_checkpoint(family, part, seed, dtype, **overrides))
    torch.manual_seed(seed)
    if folder is None:
        return shared
    folder.mkdir(parents=True, exist_ok=True)
    for file in shared.iterdir():
        shutil.copyfile(file, folder / file.name)
    return folder
