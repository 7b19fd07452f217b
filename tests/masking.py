"""The slow, obvious way to compress: the original model with what a plan removes switched off in its forward pass."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import torch
from torch import nn
from transformers import PreTrainedModel

from methods.plan import Plan


def mask(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """Switch off in ``model`` (in place) what ``plan`` removes, and return it.

    The logits of removed experts become minus infinity, a dropped MoE sub-layer adds zero, a dropped layer is skipped.
    """
    kept = []
    for layer, layer_plan in zip(model.model.layers, plan.layers, strict=True):
        if layer_plan.drop == "block":
            continue
        kept.append(layer)
        if layer_plan.drop == "moe":
            layer.mlp.forward = torch.zeros_like
            continue
        if layer_plan.experts is not None:
            gate = layer.mlp.gate
            removed = [e for e in range(gate.weight.shape[0]) if e not in layer_plan.experts]
            _mask_logits(gate, removed)
        if layer_plan.top_k is not None:
            layer.mlp.gate.top_k = layer_plan.top_k
    model.model.layers = nn.ModuleList(kept)
    return model


def _mask_logits(gate: nn.Module, removed: list[int]) -> None:
    """Make the logits of ``removed`` experts minus infinity inside ``gate``; all else of its forward is stock."""
    forward, linear = gate.forward, torch.nn.functional.linear

    def masked_linear(*args: Any) -> torch.Tensor:
        logits = linear(*args)
        logits[..., removed] = float("-inf")
        return logits

    def masked_forward(hidden: torch.Tensor) -> Any:
        with patch.object(torch.nn.functional, "linear", masked_linear):
            return forward(hidden)

    gate.forward = masked_forward
    if hasattr(gate, "e_score_correction_bias"):
        gate.e_score_correction_bias[removed] = float("-inf")


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of ``tokens`` in float32."""
    return model(input_ids=tokens, use_cache=False).logits.float()
