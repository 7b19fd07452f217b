"""Routing: from router logits to chosen experts and the weights that multiply their outputs.

Shape letters: T tokens, E routed experts, K experts per token, G groups of experts.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from methods.framework.errors import RefusedError
from methods.framework.inventory import Router


@dataclass(frozen=True, slots=True)
class Routing:
    """Decision of a router for T tokens.

    Args:
        scores_TE: score of every expert before any choice: softmax or sigmoid of the logits.
        weights_TK: factors on the chosen experts' outputs.
        indices_TK: the chosen experts, in no particular order within a token.
    """

    scores_TE: Tensor
    weights_TK: Tensor
    indices_TK: Tensor


def route(logits_TE: Tensor, router: Router, top_k: int, correction_E: Tensor | None = None) -> Routing:
    """Choose ``top_k`` experts for each token.

    Args:
        logits_TE: router logits; computed on in float32, or in float64 if they come so.
        router: semantics of the family.
        top_k: experts per token.
        correction_E: bias on the scores for the choice alone; required where ``router.correction_bias``.

    Returns:
        Scores, weights and indices; scores and weights in the dtype of the computation.

    Raises:
        RefusedError: ``top_k`` exceeds the experts a token may choose from.
    """
    experts = logits_TE.shape[1]
    reachable = experts // router.groups * router.groups_kept
    if top_k > reachable:
        raise RefusedError(
            f"top-{top_k} of {experts} experts: a token may choose among {reachable} only "
            f"({router.groups_kept} of {router.groups} groups); lower top_k or keep more experts"
        )
    logits_TE = logits_TE if logits_TE.dtype == torch.float64 else logits_TE.float()
    if router.score == "sparsemixer":
        return _one_after_the_other(logits_TE, router.jitter, top_k)
    scores_TE = logits_TE.softmax(dim=-1) if router.score == "softmax" else logits_TE.sigmoid()
    choice_TE = scores_TE
    if router.correction_bias:
        if correction_E is None:
            raise RefusedError(
                "the router chooses with a correction bias, but the checkpoint holds none for this layer"
            )
        choice_TE = scores_TE + correction_E.to(scores_TE)
    if router.groups > 1:
        choice_TE = _limit_groups(choice_TE, router)
    indices_TK = choice_TE.topk(top_k, dim=-1, sorted=False).indices
    weights_TK = scores_TE.gather(1, indices_TK)
    if router.renormalise:
        total_T1 = weights_TK.sum(dim=-1, keepdim=True)
        total_T1 = total_T1 + router.eps if router.eps else total_T1
        weights_TK = weights_TK / (total_T1.clamp_min(router.floor) if router.floor else total_T1)
    if router.scale != 1.0:
        weights_TK = weights_TK * router.scale
    return Routing(scores_TE, weights_TK, indices_TK)


def _one_after_the_other(logits_TE: Tensor, jitter: float, top_k: int) -> Routing:
    """Choose the best expert, then the best of the others; each weight is a share among the logits close to that one.

    A logit is close to the best z* where (z* - z) / max(|z|, z*) is at most twice ``jitter``. Those chosen before take no part.
    """
    left_TE, weights, indices = logits_TE, [], []
    for _ in range(top_k):
        best_T1, index_T1 = left_TE.max(dim=-1, keepdim=True)
        far_TE = (best_T1 - logits_TE) / logits_TE.abs().clamp(min=best_T1) > 2 * jitter
        weights.append(left_TE.masked_fill(far_TE, -torch.inf).softmax(dim=-1).gather(1, index_T1))
        indices.append(index_T1)
        left_TE = left_TE.scatter(1, index_T1, -torch.inf)
    return Routing(logits_TE.softmax(dim=-1), torch.cat(weights, dim=1), torch.cat(indices, dim=1))


def _limit_groups(choice_TE: Tensor, router: Router) -> Tensor:
    """Return the scores with minus infinity outside each token's best groups."""
    grouped_TGe = choice_TE.unflatten(1, (router.groups, -1))
    if router.group_score == "max":
        rank_TG = grouped_TGe.amax(dim=-1)
    else:
        rank_TG = grouped_TGe.topk(min(2, grouped_TGe.shape[-1]), dim=-1).values.sum(dim=-1)
    best_Tg = rank_TG.topk(router.groups_kept, dim=-1, sorted=False).indices
    outside_TG = torch.ones_like(rank_TG, dtype=torch.bool).scatter_(1, best_Tg, False)
    limited_TGe: Tensor = grouped_TGe.masked_fill(outside_TG.unsqueeze(-1), -torch.inf)
    return limited_TGe.flatten(1)
