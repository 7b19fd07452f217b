"""Experts whose module takes every token once for each expert, times the router's score, which is 0 where it is not chosen.

Each token chooses one expert, so all but one of its rows are zero. Here these go to the experts as states, chosen experts and
weights of 1, as in other families.

Letters: T tokens, E experts, X = E T rows, expert by expert, D hidden size, F expert width.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bench.experts.stored_module import CompressedExperts


def chosen(rows_XD: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weighed input of each token (T, D), its expert (T, 1), and which rows these were, (E, T)."""
    rows_ETD = rows_XD.unflatten(0, (experts, -1))
    index_T = (rows_ETD != 0).any(dim=-1).to(torch.uint8).argmax(dim=0)
    hit_ET = index_T == torch.arange(experts, device=index_T.device).unsqueeze(1)
    return rows_ETD.sum(dim=0), index_T.unsqueeze(1), hit_ET


def run_chosen(run: Any, experts: int, rows_XD: Tensor) -> Tensor:
    """Return what each row's expert makes of it, (X, D); zeros for rows of experts that a token does not choose.

    Args:
        run: called with states (T, D), chosen experts (T, 1) and their weights, all 1; gives (T, D).
        experts: E.
        rows_XD: inputs of the module.
    """
    input_TD, index_T1, hit_ET = chosen(rows_XD, experts)
    output_TD: Tensor = run(input_TD, index_T1, torch.ones_like(index_T1, dtype=input_TD.dtype))
    return (output_TD * hit_ET.unsqueeze(-1)).flatten(0, 1)


class WeighedExperts(CompressedExperts):
    """Experts in a form of their own, for such a block."""

    def forward(self, rows_XD: Tensor) -> Tensor:  # type: ignore[override]
        """Return the outputs, (X, D)."""
        return run_chosen(super().forward, self.num_experts, rows_XD)


class ChosenExperts(nn.Module):
    """The experts of such a module as one that is called with states, chosen experts and weights; it has no weights itself."""

    def __init__(self, experts: nn.Module) -> None:
        """Refer to ``experts``, past ``nn.Module``, which would make it the parent of its own parent."""
        super().__init__()
        vars(self)["_experts"] = experts

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_experts"], name)

    def forward(self, hidden_TD: Tensor, index_TK: Tensor, weights_TK: Tensor) -> Tensor:
        """Return the weighted sum of outputs, (T, D).

        Args:
            hidden_TD: inputs of the experts.
            index_TK: experts.
            weights_TK: factors on their outputs.
        """
        experts = vars(self)["_experts"]
        if isinstance(experts, CompressedExperts):
            return CompressedExperts.forward(experts, hidden_TD, index_TK, weights_TK)
        output_TD = torch.zeros_like(hidden_TD)
        for expert in index_TK.unique().tolist():
            tokens_N, places_N = (index_TK == expert).nonzero(as_tuple=True)
            gate_NF, up_NF = (hidden_TD[tokens_N] @ experts.gate_up_proj[expert]).chunk(2, dim=-1)
            made_ND = (experts.act_fn(gate_NF) * up_NF) @ experts.down_proj[expert]
            output_TD = output_TD.index_add(0, tokens_N, made_ND * weights_TK[tokens_N, places_N].unsqueeze(1))
        return output_TD


def by_token(experts: nn.Module) -> ChosenExperts:
    """Let ``experts`` run through a module whose inputs and output are those of each token, and return that."""
    inner = ChosenExperts(experts)
    vars(experts)["forward"] = partial(run_chosen, inner, int(inner.num_experts))
    return inner
