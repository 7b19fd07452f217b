"""Search for the set of experts whose removal costs least: every set, or backward elimination with exchange moves.

A search sees a function from sets to losses and nothing of the model. A set is a row of booleans, True where an expert goes.
Shape letters: C candidates, E routed experts. *Groups* are equal, consecutive parts of the experts that must all lose the
same number.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from methods.framework.stats import Array
from methods.kernels.gate_change import Booleans, Indices
from methods.kernels.neighbours import Losses, Neighbours

TIE = 1e-12
"""Losses that differ by less than this share of the largest one are equal: sums over the same experts in another order."""


@dataclass(frozen=True, slots=True)
class Found:
    """A set of experts to remove, in the order in which the search chose them, and its loss."""

    removed: tuple[int, ...]
    loss: float


def subset_count(experts: int, removed: int, groups: int = 1) -> int:
    """Return how many sets of ``removed`` experts there are.

    Args:
        experts: E.
        removed: how many go, a multiple of ``groups``.
        groups: consecutive groups of the router, from each of which equally many go.
    """
    return math.prod([math.comb(experts // groups, removed // groups)] * groups)


@lru_cache(maxsize=4)
def subsets(experts: int, removed: int, groups: int = 1) -> Booleans:
    """Return every set of ``removed`` experts (C, E), in lexicographic order of the experts that stay.

    Args:
        experts: E.
        removed: how many go, a multiple of ``groups``.
        groups: consecutive groups of the router, from each of which equally many go.
    """
    size, stay = experts // groups, (experts - removed) // groups
    parts = np.array(list(itertools.combinations(range(size), stay)), dtype=np.intp).reshape(-1, stay)
    chosen = np.ones((len(parts), size), dtype=bool)
    np.put_along_axis(chosen, parts, False, axis=1)
    index = np.stack(np.meshgrid(*[np.arange(len(parts))] * groups, indexing="ij"), axis=-1).reshape(-1, groups)
    found: Booleans = chosen[index].reshape(len(index), experts)
    found.setflags(write=False)
    return found


def ranking(losses_C: Array) -> Indices:
    """Return candidates from the least loss on; equal ones (up to rounding) in their order."""
    largest = float(losses_C.max(initial=0.0))
    return np.argsort(np.rint(losses_C / (largest * TIE)) if largest > 0.0 else losses_C, kind="stable")


def best_subsets(losses: Losses, experts: int, removed: int, groups: int = 1, count: int = 1) -> list[Found]:
    """Return the ``count`` best of all sets, the best first; among equal ones that which keeps lower indices first.

    Args:
        losses: loss of each row of a boolean array (C, E) of removed experts.
        experts: E.
        removed: how many go, a multiple of ``groups``.
        groups: consecutive groups of the router, from each of which equally many go.
        count: how many sets are wanted.
    """
    candidates_CE = subsets(experts, removed, groups)
    losses_C = losses(candidates_CE)
    return [
        Found(tuple(int(e) for e in np.flatnonzero(candidates_CE[i])), float(losses_C[i]))
        for i in ranking(losses_C)[:count]
    ]


def eliminate(near: Neighbours, removed: int, groups: int = 1) -> Found:
    """Remove one expert after the other, each time the one whose removal leaves the least loss; ties keep lower indices.

    Args:
        near: losses of the sets next to one.
        removed: how many go, a multiple of ``groups``.
        groups: consecutive groups of the router, from each of which equally many go.
    """
    gone: list[int] = []
    quota = np.full(groups, removed // groups)
    group_E = np.arange(near.experts) * groups // near.experts
    loss = 0.0
    for _ in range(removed):
        near.at(gone)
        open_C = [e for e in reversed(range(near.experts)) if e not in gone and quota[group_E[e]] > 0]
        losses_C = near.removals(open_C)
        best = int(ranking(losses_C)[0])
        gone.append(open_C[best])
        quota[group_E[open_C[best]]] -= 1
        loss = float(losses_C[best])
    return Found(tuple(gone), loss)


def exchange(near: Neighbours, start: Found, sweeps: int, groups: int = 1) -> Found:
    """Bring back one removed expert for one that stayed while that lowers the loss.

    A sweep goes through the removed experts in the order of ``start`` and makes the best exchange of each, if any helps. It
    ends when no expert of the set has one any more. The order does not depend on the experts' labels.

    Args:
        near: losses of the sets next to one.
        start: where to begin.
        sweeps: largest number of sweeps.
        groups: groups within which exchanges are made.
    """
    gone, loss = list(start.removed), start.loss
    group_E = np.arange(near.experts) * groups // near.experts
    near.at(gone)
    idle = 0
    for turn in range(sweeps * len(gone)):
        if idle == len(gone):  # every expert of this very set was tried
            break
        idle += 1
        place = turn % len(gone)
        back = gone[place]
        partners = [e for e in range(near.experts) if e not in gone and group_E[e] == group_E[back]]
        if not partners:
            continue
        losses_C = near.exchanges(back, partners)
        best = int(ranking(losses_C)[0])
        if losses_C[best] < loss * (1.0 - TIE):
            gone[place], loss, idle = partners[best], float(losses_C[best]), 0
            near.at(gone)
    return Found(tuple(gone), loss)
