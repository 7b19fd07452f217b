"""What computes the tensors of a checkpoint that are not copied: libraries, our own code, and the kind of device."""

from __future__ import annotations

from typing import Any

from bench.calibration.code_digest import APPLYING, code_digest
from bench.store.versions import versions
from methods.framework.layer_plan import INSIDE, LayerPlan
from methods.framework.plan import Plan

_LIBRARIES = ("compressed-tensors", "numpy", "scipy", "torch")


def computed_by(plan: Plan, device: str) -> dict[str, Any] | None:
    """Return what the values depend on beside source, plan and statistics; None where every tensor is copied.

    Args:
        plan: what is made of the source.
        device: torch device that experts are computed on.
    """
    return what_computes(device) if any(_computes(layer) for layer in plan.layers) else None


def what_computes(device: str) -> dict[str, Any]:
    """Return the libraries, code and kind of ``device`` that compute tensors."""
    found = versions()
    return {
        "versions": {name: found[name] for name in _LIBRARIES if name in found},
        "code": code_digest(APPLYING),
        "device": device.partition(":")[0],
    }


def _computes(layer: LayerPlan) -> bool:
    return bool(layer.merges or layer.constants or layer.router == "mean") or not INSIDE.isdisjoint(layer.stages)
