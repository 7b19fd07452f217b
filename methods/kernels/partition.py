"""Partition of a complete graph of similarities into blocks that are alike inside.

The objective is the mean similarity per member, sum over blocks G of sum_{i<j in G} S_ij / |G|. The plain sum would favour
one huge block, since it grows with the square of a block's size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from methods.framework.errors import RefusedError
from methods.framework.stats import Array
from methods.kernels.clustering import agglomerate, members_of, spherical_kmeans

EXACT_UP_TO = 10
"""Items up to which all set partitions are searched by default."""

EXACT_LIMIT = 14
"""Items beyond which the exact search is refused: its cost grows as blocks times 3^items."""


def partition(similarity: Array, blocks: int, exact_up_to: int = EXACT_UP_TO) -> list[list[int]]:
    """Split items into ``blocks`` blocks so that the objective is as large as can be.

    Exact for up to ``exact_up_to`` items. Above, local moves improve three starts (spectral clustering, average and
    complete linkage), and the best result is returned, so that it is never worse than any of them.

    Args:
        similarity: symmetric, shape (N, N); the diagonal is not read.
        blocks: 1 to N.
        exact_up_to: items up to which the search is exhaustive.
    """
    similarity = _checked(similarity, blocks)
    items = len(similarity)
    if blocks == items:
        return [[item] for item in range(items)]
    if blocks == 1:
        return [list(range(items))]
    if items <= exact_up_to:
        return exact_partition(similarity, blocks)
    distance = similarity.max() - similarity
    starts = [spectral(similarity, blocks), *(agglomerate(distance, blocks, link) for link in ("average", "complete"))]
    return max((improved(similarity, start) for start in starts), key=lambda found: objective(similarity, found))


def objective(similarity: Array, groups: Sequence[Sequence[int]]) -> float:
    """Return the sum over groups of the similarity of all pairs inside, divided by the group's size."""
    return math.fsum(
        math.fsum(similarity[i, j] for a, i in enumerate(group) for j in group[a + 1 :]) / len(group)
        for group in groups
    )


def exact_partition(similarity: Array, blocks: int) -> list[list[int]]:
    """Return the best of all partitions into ``blocks`` blocks, by dynamic programming over subsets.

    The best split of a subset into k blocks takes away one block that holds its lowest item and splits the rest into
    k - 1: about blocks * 3^N / 2 steps, where enumeration would need as many as there are partitions.

    Raises:
        RefusedError: more than ``EXACT_LIMIT`` items.
    """
    similarity = _checked(similarity, blocks)
    items = len(similarity)
    if items > EXACT_LIMIT:
        raise RefusedError(f"the exact partition of {items} items is out of reach; the limit is {EXACT_LIMIT}")
    value = _block_values(similarity)
    full = (1 << items) - 1
    best, choice = value.copy(), [np.arange(full + 1)]
    for block in range(2, blocks + 1):
        taken = np.zeros(full + 1, dtype=np.int64)
        longer = np.full(full + 1, -np.inf)
        for subset in range(1, full + 1) if block < blocks else (full,):
            if subset.bit_count() < block:
                continue
            inside = _parts(subset)
            totals = value[inside] + best[subset ^ inside]
            pick = int(np.argmax(totals))
            longer[subset], taken[subset] = totals[pick], inside[pick]
        best = longer
        choice.append(taken)
    found, rest = [], full
    for taken in reversed(choice):
        mask = int(taken[rest])
        found.append([item for item in range(items) if mask >> item & 1])
        rest ^= mask
    return found


def _block_values(similarity: Array) -> Array:
    """Return the objective's term of every subset, by bit mask; minus infinity for the empty one."""
    items = len(similarity)
    pairs, sizes = np.zeros(1 << items), np.zeros(1 << items)
    for item in range(items):
        bit = 1 << item
        linked = np.zeros(bit)
        for other in range(item):
            linked[1 << other : 2 << other] = linked[: 1 << other] + similarity[item, other]
        pairs[bit : 2 * bit] = pairs[:bit] + linked
        sizes[bit : 2 * bit] = sizes[:bit] + 1
    value: Array = pairs / np.maximum(sizes, 1.0)
    value[0] = -np.inf
    return value


def _parts(subset: int) -> NDArray[np.int64]:
    """Return the subsets of ``subset`` that hold its lowest item and are not all of it."""
    lowest = subset & -subset
    parts, rest = np.array([lowest], dtype=np.int64), subset ^ lowest
    while rest:
        bit = rest & -rest
        parts, rest = np.concatenate([parts, parts | bit]), rest ^ bit
    return parts[:-1]


def spectral(similarity: Array, blocks: int) -> list[list[int]]:
    """Cluster by the leading eigenvectors of the normalised graph D^-1/2 S D^-1/2, rows scaled to length 1.

    Rows are clustered by their inner products alone, which no sign or rotation of the eigenvectors changes.

    *Source*: Ng, Jordan and Weiss, On Spectral Clustering (2001), with a farthest-first start.
    """
    weights = np.maximum(similarity, 0.0)
    np.fill_diagonal(weights, 0.0)
    degree = np.sqrt(np.maximum(weights.sum(axis=1), np.finfo(np.float64).tiny))
    _, vectors = np.linalg.eigh(weights / degree[:, None] / degree[None, :])
    rows = vectors[:, -blocks:]
    rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    return spherical_kmeans(rows @ rows.T, blocks)


def improved(similarity: Array, groups: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return ``groups`` after moves and swaps of items; the objective is never lower than before.

    First the best single move or swap is made while one raises the objective. Then a chain of best moves and swaps is
    tried, each item at most once and even where the objective falls; its best prefix is kept, and all begins anew if
    that is a gain.

    *Source*: Kernighan and Lin, An Efficient Heuristic Procedure for Partitioning Graphs (1970), here with several blocks
    of any size.
    """
    similarity = np.array(similarity, dtype=np.float64)
    np.fill_diagonal(similarity, 0.0)
    blocks = len(groups)
    labels = np.zeros(len(similarity), dtype=np.intp)
    for label, group in enumerate(groups):
        labels[list(group)] = label
    least = 1e-12 * max(1.0, float(np.abs(similarity).max()))
    while True:
        while _step(similarity, labels, blocks, least) > least:
            pass
        ahead, free, total, highest, best = labels.copy(), np.ones(len(labels), dtype=bool), 0.0, least, None
        while math.isfinite(gain := _step(similarity, ahead, blocks, -math.inf, free)):
            total += gain
            if total > highest:
                highest, best = total, ahead.copy()
        if best is None:
            return members_of(labels, blocks)
        labels = best


def _step(
    similarity: Array, labels: NDArray[np.intp], blocks: int, least: float, free: NDArray[np.bool_] | None = None
) -> float:
    """Change ``labels`` by the best move or swap of ``free`` items, if that gains more than ``least``; return the gain."""
    move, swap = _gains(similarity, labels, blocks)
    if free is not None:
        move[~free] = -np.inf
        swap[~free] = -np.inf
        swap[:, ~free] = -np.inf
    gain = float(max(move.max(), swap.max()))
    if gain <= least:
        return gain
    if move.max() >= swap.max():
        one, block = divmod(int(np.argmax(move)), blocks)
        labels[one] = block
        touched = [one]
    else:
        one, other = divmod(int(np.argmax(swap)), len(labels))
        labels[one], labels[other] = labels[other], labels[one]
        touched = [one, other]
    if free is not None:
        free[touched] = False
    return gain


def _gains(similarity: Array, labels: NDArray[np.intp], blocks: int) -> tuple[Array, Array]:
    """Return what each move of item i to block b, shape (N, blocks), and each swap of items, shape (N, N), would gain."""
    member = np.eye(blocks)[labels]
    sizes = member.sum(axis=0)
    link = similarity @ member  # similarity of item i to all of block b
    pairs = (member * link).sum(axis=0) / 2.0
    own = np.take_along_axis(link, labels[:, None], axis=1)[:, 0]
    own_size, own_pairs = sizes[labels], pairs[labels]
    leave = (own_pairs - own) / np.maximum(own_size - 1.0, 1.0) - own_pairs / own_size
    move = leave[:, None] + (pairs + link) / (sizes + 1.0) - pairs / sizes
    move[(member > 0) | (own_size == 1.0)[:, None]] = -np.inf
    into = link[:, labels]  # similarity of item i to the block of item j
    change = (into.T - own[:, None] - similarity) / own_size[:, None]  # in the block of i when j takes the place of i
    swap = change + change.T
    swap[labels[:, None] == labels[None, :]] = -np.inf
    return move, swap


def _checked(similarity: Array, blocks: int) -> Array:
    """Return ``similarity`` in float64, equal to the last bit across the diagonal.

    Raises:
        RefusedError: so many blocks cannot be made.
    """
    similarity = np.asarray(similarity, dtype=np.float64)
    if not 1 <= blocks <= len(similarity):
        raise RefusedError(
            f"{len(similarity)} experts cannot be split into {blocks} groups; allowed: 1 to {len(similarity)}"
        )
    return np.asarray((similarity + similarity.T) / 2.0)
