"""Tiny checkpoints with planted experts: ones that no token reaches, ones that do nothing, and copies of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from tests.support.tiny import tiny_model, tiny_tokens

Plant = Literal["idle", "null", "twins", "shadow"]
"""``idle``: no token is ever routed to DEAD, whose weights are ordinary. ``null``: all weights of DEAD are zero, its router
row is ordinary. ``twins``: COPY has the weights and the router row of ORIGINAL. ``shadow``: the same, but its row is shorter, so
that it is chosen less often while its logits point the same way."""

DEAD, ORIGINAL, COPY = 5, 2, 6
EXPERTS = 8
TOKENS = tiny_tokens(8, 32)

_ALWAYS = 0
"""Hidden dimension that holds the same positive number for every token, on which a router row can rely."""


def plant(family: str, kind: Plant, folder: Path) -> Path:
    """Write a tiny checkpoint of ``family`` with ``kind`` planted in every MoE layer, and return its folder."""
    overrides: dict[str, Any] = {"n_group": 1, "topk_group": 1} if family == "deepseek_v3" else {}
    model = tiny_model(family, seed=3, **overrides)
    with torch.no_grad():
        embedding = model.get_input_embeddings().weight
        embedding.div_(embedding.std())  # tokens that differ, so that every other expert is used
        embedding[:, _ALWAYS] = 2.0
        for name, parameter in model.named_parameters():
            if "down_proj" in name or "o_proj" in name:  # nothing is added to that dimension
                parameter[..., _ALWAYS, :] = 0.0
            if name.endswith("mlp.gate.weight"):
                parameter[:, _ALWAYS] = 0.0
                _route(kind, parameter)
            elif name.endswith(("experts.gate_up_proj", "experts.down_proj")):
                if kind == "null":
                    parameter[DEAD] = 0.0
                elif kind in ("twins", "shadow"):
                    parameter[COPY] = parameter[ORIGINAL]
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer[DEAD] = -3.0 if kind == "idle" else buffer[DEAD]
                buffer[COPY] = buffer[ORIGINAL] if kind == "twins" else buffer[COPY]
    model.save_pretrained(folder)
    return folder


def _route(kind: Plant, rows_ED: torch.Tensor) -> None:
    """Change the router's rows."""
    if kind == "idle":
        rows_ED[DEAD] = 0.0
        rows_ED[DEAD, _ALWAYS] = -1e4
    elif kind == "twins":
        rows_ED[COPY] = rows_ED[ORIGINAL]
    elif kind == "shadow":
        rows_ED[COPY] = rows_ED[ORIGINAL] * 0.2
