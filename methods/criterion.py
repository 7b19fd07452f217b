"""The one-line criteria family of expert pruning: S_j = n_j^-b * sum over T_j of g_j^alpha |f_j|_2^beta.

One implementation with three numbers; the named methods fix them. *Source*: arXiv 2606.15716.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np

from methods.framework.allocation import expert_counts, top
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import GATE_POWERS, NORM_POWERS, Array, Stats


class Criterion(LayerwiseMethod):
    """Keep the experts with the largest n_j^-b * sum of g_j^alpha |f_j|^beta; an expert that saw no token scores 0.

    *Source*: arXiv 2606.15716, the unified score.
    """

    name: ClassVar[str] = "criterion"
    title: ClassVar[str] = "Criterion (b, alpha, beta)"
    source: ClassVar[str] = "arXiv 2606.15716"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})

    b: Literal[0, 1] = 1
    """Power of 1/n_j: 1 averages over routed tokens, 0 sums."""
    alpha: Literal[0, 1, 2] = 1
    """Power of the gate weight."""
    beta: Literal[0, 1, 2] = 1
    """Power of the output norm."""

    @property
    def needs(self) -> frozenset[str]:
        """The grid of gate and norm moments, which one pass gives for the whole family."""
        return frozenset({"gate_norm_moment"})

    def scores(self, stats: Stats, layer: int) -> Array:
        """Return the score of each expert of ``layer``, shape (E,)."""
        moments = stats.layer("gate_norm_moment", layer)
        total: Array = moments[:, GATE_POWERS.index(self.alpha), NORM_POWERS.index(self.beta)]
        scores: Array = total / np.maximum(moments[:, 0, 0], 1.0) ** self.b
        return scores

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Keep the top scorers of this layer."""
        count = expert_counts(inventory, self.keep)[layer]
        return LayerPlan(experts=top(self.scores(stats, layer), count, inventory.router.groups))


class Frequency(Criterion):
    """Number of tokens routed to the expert: (b, alpha, beta) = (0, 0, 0)."""

    name: ClassVar[str] = "frequency"
    title: ClassVar[str] = "Frequency"
    source: ClassVar[str] = "arXiv 2402.14800, baseline"
    b: Literal[0] = 0
    alpha: Literal[0] = 0
    beta: Literal[0] = 0


class SoftCount(Criterion):
    """Sum of gate weights, SEER's soft counting: (0, 1, 0)."""

    name: ClassVar[str] = "soft_count"
    title: ClassVar[str] = "SEER soft counting"
    source: ClassVar[str] = "arXiv 2404.05089"
    b: Literal[0] = 0
    alpha: Literal[1] = 1
    beta: Literal[0] = 0


class EAN(Criterion):
    """Sum of output norms, expert activation norm: (0, 0, 1)."""

    name: ClassVar[str] = "ean"
    title: ClassVar[str] = "EAN"
    source: ClassVar[str] = "arXiv 2510.13999, baseline"
    b: Literal[0] = 0
    alpha: Literal[0] = 0
    beta: Literal[1] = 1


class REAP(Criterion):
    """Mean over routed tokens of gate weight times output norm: (1, 1, 1)."""

    name: ClassVar[str] = "reap"
    title: ClassVar[str] = "REAP"
    source: ClassVar[str] = "arXiv 2510.13999, router-weighted expert activation"
    b: Literal[1] = 1
    alpha: Literal[1] = 1
    beta: Literal[1] = 1


class MAN(Criterion):
    """Mean over routed tokens of the output norm: (1, 0, 1)."""

    name: ClassVar[str] = "man"
    title: ClassVar[str] = "MAN"
    source: ClassVar[str] = "arXiv 2606.15716"
    b: Literal[1] = 1
    alpha: Literal[0] = 0
    beta: Literal[1] = 1


class MSAN(Criterion):
    """Mean over routed tokens of the squared output norm: (1, 0, 2)."""

    name: ClassVar[str] = "msan"
    title: ClassVar[str] = "MSAN"
    source: ClassVar[str] = "arXiv 2606.15716"
    b: Literal[1] = 1
    alpha: Literal[0] = 0
    beta: Literal[2] = 2
