"""Clustering from a matrix of distances or cosines: deterministic, without random starts.

Every function returns ``blocks`` non-empty lists of indices. Ties between equal values go to the lower index; otherwise the
result does not depend on how the items are numbered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from methods.framework.errors import UnknownNameError
from methods.framework.stats import Array

LINKAGES = ("average", "complete", "single")
"""Distance between two clusters: mean, largest or smallest distance between a member of one and a member of the other."""

MAX_ROUNDS = 100


def euclidean(points: Array) -> Array:
    """Return the distances between the rows of ``points``, shape (N, N); each pair is computed by itself."""
    points = np.asarray(points, dtype=np.float64)
    return np.array([np.sqrt(((points - point) ** 2).sum(axis=1)) for point in points])


def gram_distance(gram: Array) -> Array:
    """Return the Euclidean distances between vectors whose inner products are ``gram``, shape (N, N)."""
    gram = np.asarray(gram, dtype=np.float64)
    norms = np.diagonal(gram)
    distance: Array = np.sqrt(np.maximum(norms[:, None] + norms[None, :] - gram - gram.T, 0.0))
    np.fill_diagonal(distance, 0.0)
    return distance


def agglomerate(distance: Array, blocks: int, linkage: str = "average") -> list[list[int]]:
    """Join the two closest clusters, again and again, until ``blocks`` are left.

    Args:
        distance: symmetric, shape (N, N); smaller means closer, negative values are allowed.
        blocks: clusters that remain, 1 to N.
        linkage: one of ``LINKAGES``; the Lance-Williams update keeps each step at O(N^2).

    Raises:
        UnknownNameError: no such linkage.
    """
    if linkage not in LINKAGES:
        raise UnknownNameError("linkage", linkage, LINKAGES)
    between = np.asarray(distance, dtype=np.float64)
    between = (between + between.T) / 2.0  # rounding may differ across the diagonal
    np.fill_diagonal(between, np.inf)
    clusters = [[index] for index in range(len(between))]
    while len(clusters) > blocks:
        a, b = divmod(int(np.argmin(between)), len(clusters))
        row = _linked(between[a], between[b], len(clusters[a]), len(clusters[b]), linkage)
        between[a, :], between[:, a] = row, row
        between[a, a] = np.inf
        between = np.delete(np.delete(between, b, axis=0), b, axis=1)
        clusters[a] += clusters.pop(b)
    return clusters


def _linked(to_a: Array, to_b: Array, size_a: int, size_b: int, linkage: str) -> Array:
    """Return the distances of the union of clusters a and b to every cluster."""
    if linkage == "complete":
        return np.asarray(np.maximum(to_a, to_b))
    if linkage == "single":
        return np.asarray(np.minimum(to_a, to_b))
    return np.asarray((size_a * to_a + size_b * to_b) / (size_a + size_b))


def spherical_kmeans(cosine: Array, blocks: int) -> list[list[int]]:
    """Cluster unit vectors by their cosine to the direction of each cluster's mean (spherical K-means).

    Only inner products are needed: the cosine of u_i to the mean of C is sum_{j in C} <u_i, u_j> / |sum_{j in C} u_j|. The
    first centre is the vector with the largest total cosine, each further one the vector farthest from all centres so far.

    Args:
        cosine: inner products of the unit vectors, shape (N, N).
        blocks: clusters, 1 to N.
    """
    cosine = np.asarray(cosine, dtype=np.float64)
    centres = _farthest_first(cosine, blocks)
    labels = np.argmax(cosine[:, centres], axis=1)
    labels[centres] = np.arange(blocks)
    for _ in range(MAX_ROUNDS):
        towards = _cosine_to_means(cosine, labels, blocks)
        new = np.argmax(towards, axis=1)
        _fill_empty(new, towards, blocks)
        if np.array_equal(new, labels):
            break
        labels = new
    return members_of(labels, blocks)


def _farthest_first(cosine: Array, blocks: int) -> list[int]:
    totals = [math.fsum(row) for row in cosine]
    centres = [int(np.argmax(totals))]
    nearest = cosine[centres[0]].copy()
    while len(centres) < blocks:
        nearest[centres] = np.inf
        centres.append(int(np.argmin(nearest)))
        nearest = np.minimum(nearest, cosine[centres[-1]])
    return centres


def _cosine_to_means(cosine: Array, labels: NDArray[np.intp], blocks: int) -> Array:
    """Return the cosine of each vector to the mean of each cluster, shape (N, blocks)."""
    member = np.eye(blocks)[labels]
    towards: Array = cosine @ member
    squared_length = (member * towards).sum(axis=0)
    return np.asarray(towards / np.sqrt(np.maximum(squared_length, np.finfo(np.float64).tiny)))


def _fill_empty(labels: NDArray[np.intp], towards: Array, blocks: int) -> None:
    """Give each empty cluster the vector that fits its own cluster least, among clusters that can spare one."""
    for empty in range(blocks):
        sizes = np.bincount(labels, minlength=blocks)
        if sizes[empty]:
            continue
        fit = np.where(sizes[labels] > 1, towards[np.arange(len(labels)), labels], np.inf)
        labels[int(np.argmin(fit))] = empty


def members_of(labels: Sequence[int] | NDArray[np.intp], blocks: int) -> list[list[int]]:
    """Return the indices with each label 0 to ``blocks`` - 1."""
    return [[index for index, label in enumerate(labels) if label == block] for block in range(blocks)]
