"""Routing of one token in plain Python, from the definitions of the families."""

from __future__ import annotations

import math

from methods.framework.inventory import Router


def gates(
    logits: list[float], router: Router, top_k: int, correction: list[float] | None = None, removed: int | None = None
) -> dict[int, float]:
    """Return the weight of each chosen expert; an expert that is ``removed`` has no row in the router."""
    experts = [e for e in range(len(logits)) if e != removed]
    if router.score == "softmax":
        highest = max((logits[e] for e in experts), default=0.0)
        powers = {e: math.exp(logits[e] - highest) for e in experts}
        total = math.fsum(powers.values())
        score = {e: power / total for e, power in powers.items()}
    else:
        score = {e: 1.0 / (1.0 + math.exp(-logits[e])) for e in experts}
    choice = {e: score[e] + (correction[e] if correction is not None else 0.0) for e in experts}
    size = len(logits) // router.groups
    if router.groups > 1:
        members = {
            g: sorted((choice[e] for e in experts if e // size == g), reverse=True) for g in range(router.groups)
        }
        count = 1 if router.group_score == "max" else 2
        rank = {g: sum(members[g][:count]) if len(members[g]) >= count else -math.inf for g in members}
        best = sorted(rank, key=lambda g: rank[g], reverse=True)[: router.groups_kept]
        choice = {e: value for e, value in choice.items() if e // size in best}
    chosen = sorted(choice, key=lambda e: choice[e], reverse=True)[:top_k]
    total = math.fsum(score[e] for e in chosen) + router.eps if router.renormalise else 1.0
    return {e: score[e] / total * router.scale for e in chosen}
