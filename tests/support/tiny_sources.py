"""Tiny checkpoints that tests read and never write to: each is made once in a process."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from bench.checkpoint.checkpoint import Checkpoint
from tests.support.tiny import tiny_checkpoint

_FOLDER = TemporaryDirectory(prefix="tiny-sources-")


@cache
def tiny_source(family: str, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Checkpoint:
    """Return the tiny checkpoint of ``family`` with these settings, as ``tiny_checkpoint`` writes it."""
    name = "-".join([family, str(dtype), *(f"{key}={value}" for key, value in sorted(settings.items()))])
    return Checkpoint.open(tiny_checkpoint(family, Path(_FOLDER.name) / name, dtype=dtype, **settings))
