"""From shares to whole numbers: how many experts or layers remain, and which ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from methods.errors import RefusedError
from methods.inventory import Inventory
from methods.stats import Array


def depth_shares(keep: float | tuple[float, ...], layers: int) -> list[float]:
    """Return one share per layer: a number repeated, or knots interpolated linearly from the first to the last layer."""
    knots = (keep,) if isinstance(keep, (int, float)) else keep
    positions = np.linspace(0.0, len(knots) - 1.0, layers) if layers > 1 else np.zeros(layers)
    return [float(share) for share in np.interp(positions, np.arange(len(knots)), knots)]


def expert_counts(inventory: Inventory, keep: float | tuple[float, ...]) -> dict[int, int]:
    """Return the number of experts that remain in each MoE layer.

    Shares are turned into whole numbers so that the total is the nearest to the sum of all shares times experts (largest
    remainder, ties to the earlier layer); with group-limited routers, to multiples of the number of groups.

    Raises:
        RefusedError: a layer would keep fewer experts than the router activates for one token.
    """
    moe = inventory.moe_layers
    unit = inventory.router.groups
    exact = [
        share * inventory.layers[index].experts / unit
        for share, index in zip(depth_shares(keep, len(moe)), moe, strict=True)
    ]
    counts = [unit * units for units in largest_remainder(exact)]
    for index, count in zip(moe, counts, strict=True):
        floor = inventory.router.fewest_experts(inventory.layers[index].top_k)
        if count < floor:
            raise RefusedError(
                f"keep={keep} leaves {count} of {inventory.layers[index].experts} experts in layer {index}, fewer than the "
                f"{floor} that its router needs; the smallest keep is {floor / inventory.layers[index].experts:.3g}"
            )
    return dict(zip(moe, counts, strict=True))


def largest_remainder(exact: Sequence[float]) -> list[int]:
    """Round non-negative numbers so that their total is the rounded total; the largest fractions go up, ties by index."""
    values = np.round(np.asarray(exact, dtype=np.float64), 9)
    floors = np.floor(values).astype(int)
    missing = int(np.floor(values.sum() + 0.5)) - int(floors.sum())
    order = np.argsort(-(values - floors), kind="stable")
    floors[order[:missing]] += 1
    return [int(value) for value in floors]


def top(scores: Array, count: int, groups: int = 1) -> tuple[int, ...]:
    """Return the ``count`` indices with the largest scores, ascending; ties keep the lower index.

    With ``groups`` > 1, ``count / groups`` indices are taken from each of the equal, consecutive groups.
    """
    size = len(scores) // groups
    kept: list[int] = []
    for group in range(groups):
        order = np.argsort(-scores[group * size : (group + 1) * size], kind="stable")
        kept += [group * size + int(index) for index in order[: count // groups]]
    return tuple(sorted(kept))


def removed_count(keep: float | tuple[float, ...], units: int) -> int:
    """Return how many of ``units`` layers or blocks go.

    Raises:
        RefusedError: ``keep`` holds depth knots, which mean nothing when the depth itself is what is removed.
    """
    if not isinstance(keep, (int, float)):
        raise RefusedError(f"keep={keep}: depth knots have no meaning where whole layers are dropped; give one number")
    return units - int(np.floor(keep * units + 0.5))
