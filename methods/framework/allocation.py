"""From shares to whole numbers: how many experts or layers remain, and which ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.stats import Array


def depth_shares(keep: float | tuple[float, ...], layers: int) -> list[float]:
    """Return one share per layer: a number repeated, or knots interpolated linearly from the first to the last layer."""
    knots = (keep,) if isinstance(keep, (int, float)) else keep
    positions = np.linspace(0.0, len(knots) - 1.0, layers) if layers > 1 else np.zeros(layers)
    return [float(share) for share in np.interp(positions, np.arange(len(knots)), knots)]


def expert_counts(inventory: Inventory, keep: float | tuple[float, ...], mapped: bool = False) -> dict[int, int]:
    """Return the number of experts that remain in each MoE layer.

    Shares are turned into whole numbers so that the total is the nearest to the sum of all shares times experts (largest
    remainder, ties to the earlier layer); with group-limited routers, to multiples of the number of groups.

    Args:
        inventory: the model.
        keep: share of experts that remain, or its knots over the depth.
        mapped: whether the router keeps its rows (``LayerPlan.router == "map"``): then one expert suffices, in any group.

    Raises:
        RefusedError: a layer would keep fewer experts than the router activates for one token, or none.
    """
    moe = inventory.moe_layers
    unit = 1 if mapped else inventory.router.groups
    exact = [
        share * inventory.layers[index].experts / unit
        for share, index in zip(depth_shares(keep, len(moe)), moe, strict=True)
    ]
    counts = [unit * units for units in largest_remainder(exact)]
    for index, count in zip(moe, counts, strict=True):
        floor = 1 if mapped else inventory.router.fewest_experts(inventory.layers[index].top_k)
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

    Args:
        scores: one for each index.
        count: how many stay, a multiple of ``groups``.
        groups: parts of the same size.
    """
    size = len(scores) // groups
    kept: list[int] = []
    for group in range(groups):
        order = np.argsort(-scores[group * size : (group + 1) * size], kind="stable")
        kept += [group * size + int(index) for index in order[: count // groups]]
    return tuple(sorted(kept))


def overall_count(inventory: Inventory, keep: float | tuple[float, ...]) -> int:
    """Return how many experts of the whole model remain, for methods that find the depth profile themselves.

    Raises:
        RefusedError: ``keep`` holds depth knots, or leaves fewer experts than there are layers, each of which needs one.
    """
    if not isinstance(keep, (int, float)):
        raise RefusedError(
            f"keep={keep}: depth knots contradict a scope that finds the depth profile itself; give one number"
        )
    count, layers = largest_remainder([keep * inventory.num_experts])[0], len(inventory.moe_layers)
    if count < layers:
        raise RefusedError(
            f"keep={keep} leaves {count} experts for {layers} layers, each of which needs one; "
            f"the smallest keep is {layers / inventory.num_experts:.3g}"
        )
    return count


def top_overall(scores: Mapping[int, Array], count: int) -> dict[int, tuple[int, ...]]:
    """Return for each layer the indices that stay, ascending: its best one, and then the best of all layers.

    Args:
        scores: scores of each layer, by its index.
        count: indices that stay in all, at least one for each layer; ties keep the earlier layer, then the lower index.
    """
    kept = {layer: [int(np.argmax(values))] for layer, values in scores.items()}
    others = [
        (-float(value), layer, index)
        for layer, values in scores.items()
        for index, value in enumerate(values)
        if index != kept[layer][0]
    ]
    for _, layer, index in sorted(others)[: count - len(kept)]:
        kept[layer].append(index)
    return {layer: tuple(sorted(indices)) for layer, indices in kept.items()}


def removed_count(keep: float | tuple[float, ...], units: int) -> int:
    """Return how many of ``units`` layers or blocks go.

    Raises:
        RefusedError: ``keep`` holds depth knots, which mean nothing when the depth itself is what is removed.
    """
    if not isinstance(keep, (int, float)):
        raise RefusedError(f"keep={keep}: depth knots have no meaning where whole layers are dropped; give one number")
    return units - int(np.floor(keep * units + 0.5))
