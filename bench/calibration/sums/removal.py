"""How a token's gate weights change when one expert alone is removed, its row cut out of the router.

Removing an expert that a token uses brings in the next best one; removing another leaves the choice as it is. A softmax over
one logit less raises the other scores, so without renormalisation every expert's removal changes the weights of every token.
Everything is in float64. Shape letters: N tokens, E routed experts, K experts per token, S = K + 1 candidates (K where K = E).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from methods.framework.inventory import Router
from methods.kernels.routing import route


def needs_all_experts(router: Router) -> bool:
    """Return whether a removal can bring in more than the next best expert, so that all outputs are needed.

    Groups are ranked anew without the expert; and a softmax over one logit less scales scores but not the correction that
    is added to them for the choice. A sparsemixer's weights depend on experts that no token chooses.
    """
    return router.groups > 1 or router.score == "sparsemixer" or (router.score == "softmax" and router.correction_bias)


def next_expert(logits_NE: Tensor, indices_NK: Tensor, router: Router, correction_E: Tensor | None) -> Tensor:
    """Return the best expert beside the chosen ones, shape (N, 1), or (N, 0) where all are chosen; no group limit.

    Args:
        logits_NE: router logits.
        indices_NK: the chosen experts.
        router: semantics of the family, of which scores and the bias on the choice count here.
        correction_E: the bias on the choice; None where the model has none.
    """
    if indices_NK.shape[1] == logits_NE.shape[1]:
        return indices_NK[:, :0]
    logits_NE = logits_NE.double()
    choice_NE = logits_NE.softmax(dim=-1) if router.score == "softmax" else logits_NE.sigmoid()
    if router.correction_bias and correction_E is not None:
        choice_NE = choice_NE + correction_E.to(choice_NE)
    return choice_NE.scatter(1, indices_NK, -torch.inf).argmax(dim=-1, keepdim=True)


@dataclass(frozen=True, slots=True)
class Removals:
    """Effect of every single removal on the gate weights of some tokens.

    Args:
        change_NKS: for the removal of each chosen expert, the change of the weight of each candidate.
        growth_NE: for the removal of any other expert, the share by which all of the token's weights grow; None means 0.
    """

    change_NKS: Tensor
    growth_NE: Tensor | None


def removals(logits_NE: Tensor, candidates_NS: Tensor, top_k: int, router: Router) -> Removals:
    """Return the effect of removing each expert alone, for a router that does not need all experts for it.

    Args:
        logits_NE: router logits.
        candidates_NS: the chosen experts, then the one that follows them.
        top_k: experts per token.
        router: semantics of the family.
    """
    logits_NE = logits_NE.double()
    chosen_NK = candidates_NS[:, :top_k]
    rest_NE = None
    if router.score == "softmax":
        log_NE = logits_NE.log_softmax(dim=-1)
        rest_NE = _log_without(log_NE)
        before_NS = log_NE.gather(1, candidates_NS).exp()
        after_NKS = (log_NE.gather(1, candidates_NS).unsqueeze(1) - rest_NE.gather(1, chosen_NK).unsqueeze(2)).exp()
    else:
        before_NS = logits_NE.sigmoid().gather(1, candidates_NS)
        after_NKS = before_NS.unsqueeze(1).repeat(1, top_k, 1)
    before_NS[:, top_k:] = 0.0
    after_NKS.diagonal(dim1=1, dim2=2).zero_()
    change_NKS = _weights(after_NKS, router) - _weights(before_NS, router).unsqueeze(1)
    growth_NE = None if rest_NE is None else _growth(rest_NE, before_NS.sum(dim=-1, keepdim=True), router)
    return Removals(change_NKS, growth_NE)


def _log_without(log_NE: Tensor) -> Tensor:
    """Return log(1 - s_j) for log-probabilities log s, exact also where s_j is all but 1."""
    best_N1 = log_NE.argmax(dim=-1, keepdim=True)
    others_N1 = log_NE.scatter(1, best_N1, -torch.inf).logsumexp(dim=-1, keepdim=True)
    return torch.log1p(-log_NE.exp().clamp_max(0.5)).scatter(1, best_N1, others_N1)


def _weights(scores: Tensor, router: Router) -> Tensor:
    """Return gate weights from the scores of the chosen experts along the last axis, 0 where not chosen."""
    if router.renormalise:
        total = scores.sum(dim=-1, keepdim=True) + router.eps
        scores = torch.where(total > 0, scores / total, 0.0)
    return scores * router.scale


def _growth(rest_NE: Tensor, chosen_N1: Tensor, router: Router) -> Tensor | None:
    """Return the share by which weights grow when a softmax loses an expert that was not chosen.

    All scores are divided by 1 - s_j. Renormalising undoes that, but for the eps in the divisor.
    """
    if not router.renormalise:
        return torch.expm1(-rest_NE)
    if not router.eps:
        return None
    rest_NE = rest_NE.exp()
    return router.eps * (1 - rest_NE) / (chosen_N1 + router.eps * rest_NE)


def changes_by_routing_again(logits_NE: Tensor, top_k: int, router: Router, correction_E: Tensor | None) -> Tensor:
    """Return the change of every weight for the removal of every expert, shape (N, E removed, E).

    The expert's logit and its score in the choice become minus infinity; groups keep their places. This holds for any
    router; see ``needs_all_experts`` for those that need it.

    Args:
        logits_NE: router logits.
        top_k: experts per token.
        router: semantics of the family.
        correction_E: bias on the choice; None where the model has none.
    """
    logits_NE = logits_NE.double()
    count = logits_NE.shape[1]
    corrected = replace(router, correction_bias=True)
    correction_E = logits_NE.new_zeros(count) if correction_E is None else correction_E.double()
    before_NE = _dense(logits_NE, top_k, corrected, correction_E)
    change_NEE = torch.empty(len(logits_NE), count, count, dtype=torch.float64, device=logits_NE.device)
    for expert in range(count):
        without_NE, barred_E = logits_NE.clone(), correction_E.clone()
        without_NE[:, expert] = barred_E[expert] = -torch.inf
        change_NEE[:, expert] = _dense(without_NE, top_k, corrected, barred_E) - before_NE
    return change_NEE


def _dense(logits_NE: Tensor, top_k: int, router: Router, correction_E: Tensor) -> Tensor:
    routing = route(logits_NE, router, top_k, correction_E)
    return torch.zeros_like(logits_NE).scatter_(1, routing.indices_TK, routing.weights_TK)
