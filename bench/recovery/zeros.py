"""Weights of sparse experts and linear layers that must stay zero while the others are trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.checkpoint.checkpoint import Checkpoint
from bench.recovery.placed import expert_weights, weights_of_role
from methods.framework.linears import LINEAR_ROLES
from methods.framework.plan import Plan

Kept = Mapping[str, Tensor]
"""By parameter name: True where a weight is not zero."""


def is_sparse(document: Mapping[str, Any] | None) -> bool:
    """Return whether the plan of a checkpoint, or one of those before it, makes experts sparse."""
    while document is not None:
        if any(layer.sparsity is not None for layer in Plan.loads(json.dumps(document)).layers):
            return True
        document = (document.get("provenance") or {}).get("before")
    return False


def kept_weights(model: nn.Module, checkpoint: Checkpoint) -> Kept:
    """Return which weights of the experts and other linear layers are not zero now; parameters without a zero are left out."""
    slimmed = expert_weights(model, checkpoint) | weights_of_role(model, checkpoint, LINEAR_ROLES)
    found = {name: weight.detach() != 0 for name, weight in slimmed.items()}
    return {name: kept for name, kept in found.items() if not kept.all()}


@contextmanager
def still_zeros(model: nn.Module, kept: Kept) -> Iterator[None]:
    """Make gradients zero where weights are, so that they stay it and count neither for clipping nor for moments.

    AdamW moves a weight whose gradients were all 0 by 0, and decay shrinks 0 to 0.
    """
    known = dict(model.named_parameters())
    hooks = [
        known[name].register_hook(lambda gradient, mask=mask: gradient * mask)
        for name, mask in kept.items()
        if name in known and known[name].requires_grad
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def restore_zeros(model: nn.Module, kept: Kept) -> None:
    """Make weights zero again where they were, after an update that did not know of them was added."""
    for name, mask in kept.items():
        model.get_parameter(name).mul_(mask)
