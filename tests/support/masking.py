"""The slow, obvious way to compress: the original model with what a plan removes switched off in its forward pass.

Where a plan merges experts, maps router rows or puts constants in place of experts, tokens are routed one by one and each
chosen row is looked up in the plan. Nothing of the product's kernels is used.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from transformers import PreTrainedModel

from methods.framework.layer_plan import LayerPlan, Merge
from methods.framework.plan import Plan
from methods.framework.stats import Stats

Matrices = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""gate [F, D], up [F, D], down [D, F]"""


def mask(model: PreTrainedModel, plan: Plan, moments: Stats | None = None) -> PreTrainedModel:
    """Switch off in ``model`` (in place) what ``plan`` removes, and return it.

    The logits of removed experts become minus infinity, a dropped MoE sub-layer adds zero, a dropped layer is skipped.
    """
    kept = []
    for index, (layer, layer_plan) in enumerate(zip(model.model.layers, plan.layers, strict=True)):
        if layer_plan.drop == "block":
            continue
        kept.append(layer)
        if layer_plan.drop == "moe":
            layer.mlp.forward = torch.zeros_like
            continue
        if layer_plan.merges or layer_plan.constants:
            means = moments.layer("routed_output_mean", index) if layer_plan.constants and moments else None
            _route_one_by_one(layer.mlp, layer_plan, means)
        elif layer_plan.experts is not None:
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


def _route_one_by_one(mlp: nn.Module, plan: LayerPlan, means: np.ndarray | None) -> None:
    """Give the block a router of the rows that stay, and experts that are run for one token and one row at a time."""
    members_of = {merge.into: merge for merge in plan.merges}
    named = {*plan.experts, *plan.constants, *(m for merge in plan.merges for m in merge.members)}
    rows = sorted(named) if plan.router == "map" else list(plan.experts)
    gate = copy.deepcopy(mlp.gate)
    gate.num_experts = len(rows)
    for name in ("weight", "e_score_correction_bias"):
        if (value := getattr(mlp.gate, name, None)) is None:
            continue
        stacked = torch.stack([_row(value.detach(), row, members_of.get(row), plan.router) for row in rows])
        setattr(gate, name, nn.Parameter(stacked) if name == "weight" else stacked)
    gate.top_k = min(mlp.gate.top_k, len(rows))
    mlp.gate = gate

    experts = mlp.experts
    stored = {
        e: merge_slowly(members_of[e], experts) if e in members_of else matrices(experts, e) for e in plan.experts
    }
    leads_to = {member: merge.into for merge in plan.merges for member in merge.members}

    def forward(hidden: torch.Tensor, chosen: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(hidden)
        for token in range(hidden.shape[0]):
            for place in range(chosen.shape[1]):
                row = rows[int(chosen[token, place])]
                if row in plan.constants:
                    value = torch.from_numpy(means[row]).to(hidden)
                else:
                    gate_FD, up_FD, down_DF = stored[leads_to.get(row, row)]
                    value = down_DF @ (experts.act_fn(gate_FD @ hidden[token]) * (up_FD @ hidden[token]))
                out[token] += weights[token, place] * value
        return out

    experts.forward = forward


def _row(value: torch.Tensor, row: int, merge: Merge | None, router: str) -> torch.Tensor:
    if merge is None or router != "mean":
        return value[row]
    total = sum(merge.weights)
    return sum(weight / total * value[m] for m, weight in zip(merge.members, merge.weights, strict=True))


def matrices(experts: nn.Module, expert: int) -> Matrices:
    """Return the matrices of one expert of a transformers model."""
    gate, up = experts.gate_up_proj[expert].detach().chunk(2)
    return gate, up, experts.down_proj[expert].detach()


def merge_slowly(merge: Merge, experts: nn.Module) -> Matrices:
    """Return the merged expert by the definitions of the kernels."""
    members = [matrices(experts, member) for member in merge.members]
    if merge.kernel == "aligned":
        members = [aligned_slowly(matrices(experts, merge.into), member) for member in members]
    if merge.kernel == "svd":
        return tuple(joint_svd([m[i] for m in members], merge.weights, merge.rank) for i in range(3))
    return tuple(sum(w * m[i] for w, m in zip(merge.weights, members, strict=True)) for i in range(3))


def aligned_slowly(reference: Matrices, other: Matrices) -> Matrices:
    """Return ``other`` with its hidden channels matched to those of ``reference``, pair by pair."""
    width = reference[0].shape[0]
    match = np.zeros((width, width))
    for a in range(width):
        for b in range(width):
            match[a, b] = reference[0][a] @ other[0][b] + reference[1][a] @ other[1][b]
            match[a, b] += reference[2][:, a] @ other[2][:, b]
    order = linear_sum_assignment(-match)[1]
    return other[0][order], other[1][order], other[2][:, order]


def joint_svd(parts: Sequence[torch.Tensor], weights: Sequence[float], rank: int) -> torch.Tensor:
    """Return U_r S_r sum_i w_i V_i^T from [W_1 ... W_n] = U S [V_1^T ... V_n^T], in float64."""
    u, s, vt = torch.linalg.svd(torch.cat([part.double() for part in parts], dim=1), full_matrices=False)
    width = parts[0].shape[1]
    right = sum(w * vt[:rank, i * width : (i + 1) * width] for i, w in enumerate(weights))
    return (u[:, :rank] @ torch.diag(s[:rank]) @ right).to(parts[0].dtype)


@torch.no_grad()
def logits(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Return the logits of ``tokens`` in float32."""
    return model(input_ids=tokens, use_cache=False).logits.float()
