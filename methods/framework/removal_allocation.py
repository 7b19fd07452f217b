"""How many experts each layer loses when important layers lose fewer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from methods.framework.errors import RefusedError

NEGLIGIBLE = 1e-9
"""Least importance of a layer as a share of the largest one, so that a layer of importance 0 has a finite share."""


def removal_counts(importance: Sequence[float], total: int, most: Sequence[int], unit: int = 1) -> list[int]:
    """Return how many experts go from each layer: in inverse proportion to its importance, up to a limit.

    What exceeds a layer's limit is shared out among the others, again by 1 / importance. Shares become whole numbers by
    the largest remainder: rounded down, then the largest fractions go up, ties to the earlier layer.

    Args:
        importance: importance of each layer, none negative.
        total: experts that go in all; a multiple of ``unit``.
        most: largest number that may go from each layer.
        unit: number by which all counts divide (one expert from each of the router's groups).

    Returns:
        One count per layer, adding up to ``total``.

    Raises:
        RefusedError: the limits add up to less than ``total``.
    """
    limits = np.asarray(most, dtype=np.int64) // unit
    budget = total // unit
    if budget > limits.sum():
        raise RefusedError(
            f"{total} experts should go, but the layers can spare {unit * int(limits.sum())}; raise keep"
        )
    values = np.asarray(importance, dtype=np.float64)
    largest = values.max(initial=0.0)
    weights = 1.0 / np.maximum(values / largest, NEGLIGIBLE) if largest > 0.0 else np.ones(len(values))
    counts = np.zeros(len(values), dtype=np.int64)
    open_layers = limits > 0
    while True:
        rest = budget - int(counts[~open_layers].sum())
        exact = np.where(open_layers, rest * weights / max(weights[open_layers].sum(), NEGLIGIBLE), 0.0)
        full = open_layers & (exact >= limits)
        if not full.any():
            break
        counts[full] = limits[full]
        open_layers &= ~full
    exact = np.round(exact, 9)
    floors = np.floor(exact).astype(np.int64)
    counts[open_layers] = floors[open_layers]
    missing = budget - int(counts.sum())
    fractions = np.where(open_layers & (counts < limits), exact - floors, -1.0)
    counts[np.argsort(-fractions, kind="stable")[:missing]] += 1
    return [unit * int(count) for count in counts]
