"""Tiny compressed checkpoints, texts and settings that the tests of recovery share."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.settings.recovery import RecoverySettings
from methods.framework.inside import Sparsity
from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from tests.support.groupings import moments_of
from tests.support.tiny import tiny_checkpoint

SPARSE = LayerPlan(experts=(0, 2, 5, 6), sparsity=Sparsity(share=0.5, pattern="2:4"))
PAIRS = Merge(into=0, members=(0, 3), weights=(0.5, 0.5)), Merge(into=2, members=(1, 2), weights=(0.25, 0.75))
MAPPED = LayerPlan(experts=(0, 2, 6), merges=PAIRS, constants=(4, 5, 7), router="map")
MERGED = LayerPlan(experts=(0, 2, 4, 7), merges=PAIRS, router="mean")
PLANS = {
    "sparse": (SPARSE, LayerPlan(), LayerPlan(drop="moe")),
    "mapped": (LayerPlan(drop="block"), MAPPED, MERGED),
}
RATES = {"lora": 1e-2, "full": 1e-3, "router_kd": 1e-2, "expert_kd": 1e-3}
CASES = [("lora", None), ("lora", True), ("full", None), ("full", False), ("router_kd", None), ("expert_kd", None)]
"""Kinds, and whether experts are trained."""

Pair = tuple[Checkpoint, Checkpoint]
"""A source, and what a plan makes of it."""
_FOLDER = TemporaryDirectory(prefix="recoveries")


@cache
def compressed(family: str, plan: str, dtype: torch.dtype = torch.float32) -> Pair:
    """Return a tiny source and the checkpoint that a plan makes of it; each is made once in a process."""
    folder = Path(_FOLDER.name) / f"{family}-{plan}-{dtype}"
    source = Checkpoint.open(tiny_checkpoint(family, folder / "source", dtype=dtype))
    blueprint = Plan.of(source.inventory, PLANS[plan])
    moments = moments_of(source.inventory, 0) if blueprint.moments else None
    return source, Checkpoint.open(apply(source, blueprint, folder / "student", moments=moments))


def write_text(path: Path) -> str:
    """Write eight windows in which each token follows from the one before it, and return the file's name."""
    starts = np.random.default_rng(0).integers(160, size=8)
    np.save(path, np.array([[(int(start) * pow(7, i, 160) + 3 * i) % 160 for i in range(16)] for start in starts]))
    return str(path)


def settings(kind: str, text: str, **more: Any) -> RecoverySettings:
    """Return six steps, each on the whole text, with other settings on top."""
    given = {"kind": kind, "corpus": text, "steps": 6, "batch": 8, "rate": RATES[kind]}
    return RecoverySettings(**given | ({"rank": 4} if kind == "lora" else {}) | more)


def changed(before: Checkpoint, after: Checkpoint) -> set[Any]:
    """Return the tensors that have other bytes."""
    return {
        entry
        for entry in before.inventory.tensors()
        if not torch.equal(before.read(entry).view(torch.uint8), after.read(entry).view(torch.uint8))
    }
