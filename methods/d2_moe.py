"""D²-MoE: one shared matrix for all experts of a layer, and the difference of each expert to it as factors."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

from pydantic import Field

from methods.framework.allocation import depth_shares, largest_remainder
from methods.framework.errors import RefusedError
from methods.framework.inside import LowRank, SharedBase
from methods.framework.inside_fit import matrix_shapes
from methods.framework.inventory import Inventory, LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import Array, Stats
from methods.low_rank import all_stays


class D2MoE(Method):
    """W_i = W_b + A_i B_i: W_b is the mean of the layer's experts by Fisher information, A_i B_i the whitened SVD of the rest.

    W_b = sum_i F_i * W_i / sum_i F_i in every entry (``weights`` = ``entry``). F_i is the squared gradient of a window's mean
    loss in that entry of W_i, in the mean over the calibration windows; where it is 0 for all experts, the entry is their plain
    mean. W_b may lose columns (``columns``): those stay for which |W_b[:, j]| |X_j| is largest, X the inputs of all experts of
    the layer. All matrices of a layer have one rank, such that base and factors together are the share ``keep`` of the
    experts' parameters; ranks of layers differ by at most one (largest remainder).

    *Source*: arXiv 2502.17298: Fisher-weighted merging, delta decomposition, static part of the column pruning.

    *Differs*: (1) Fisher information is not multiplied by the frequency of the expert, as in the text; the official code does.
    (2) Columns are chosen once; the paper chooses half of them anew for each batch, which depends on what else is in the batch
    and on the cache. (3) The rank follows from ``keep``, which counts the base; the official code takes a ratio for the factors
    and another for the base. (4) ``keep`` is the share of the routed experts' parameters, the paper's ratio one of the whole
    model. (5) The whitened factors are those of ``methods.kernels.low_rank``, with the least damping that suffices. (6)
    ``weights`` = ``expert`` is not in the official code: F_i is one number for all entries of expert i, the sum over them, which
    the plan states (equal where no expert of a layer has any), and X counts the experts by it. An expert's share differs by up
    to 0.15 between the two. It needs no statistic that is as large as the experts.
    """

    name: ClassVar[str] = "d2_moe"
    title: ClassVar[str] = "D²-MoE"
    source: ClassVar[str] = "arXiv 2502.17298"
    stages: ClassVar[frozenset[str]] = frozenset({"rank"})

    columns: float = Field(
        default=1.0, gt=0.0, le=1.0, description="share of the columns of the shared matrix that stay"
    )
    weights: Literal["entry", "expert"] = Field(
        default="entry",
        description="whose squared gradients weigh the shared matrix: those of every entry by itself, or of an expert as a whole",
    )

    @property
    def needs(self) -> frozenset[str]:
        """Weights of the average, where the plan states them."""
        return frozenset({"fisher_mass"} if self.weights == "expert" else ())

    @property
    def moments(self) -> frozenset[str]:
        """Moments of the inputs of the experts' matrices, and squared gradients by entry; none where all stays whole."""
        base = self._base(1, () if self.weights == "entry" else (1.0,))
        return (
            frozenset() if all_stays(self.keep) else LowRank(kernel="whitened", ranks=((1, 1, 1),), base=base).moments
        )

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """State base and rank of each layer.

        Raises:
            RefusedError: beside the base there is no room for factors of rank 1.
        """
        shares = dict(zip(inventory.moe_layers, depth_shares(self.keep, len(inventory.moe_layers)), strict=True))
        factored = [layer for layer, share in shares.items() if share < 1.0]
        exact = []
        for layer in factored:
            room = self.exact_rank(inventory.layers[layer], shares[layer])
            if room < 1.0:
                raise RefusedError(
                    f"d2_moe: keep={shares[layer]:.3g} of layer {layer} holds no factors of rank 1 beside the shared matrix; the "
                    f"smallest keep is {self.smallest(inventory.layers[layer]):.3g}, or take fewer columns"
                )
            exact.append(room)
        ranks = dict(zip(factored, largest_remainder(exact), strict=True))
        plans = []
        for layer, entry in enumerate(inventory.layers):
            rank = None
            if layer in ranks:
                weights = () if self.weights == "entry" else fisher_weights(stats.layer("fisher_mass", layer))
                base = self._base(entry.experts, weights)
                rank = LowRank(kernel="whitened", ranks=((ranks[layer],) * 3,) * entry.experts, base=base)
            plans.append(LayerPlan(rank=rank))
        return plans

    def exact_rank(self, layer: LayerInventory, share: float) -> float:
        """Return the rank, not rounded, at which the experts of ``layer`` store ``share`` of their parameters.

        It is smaller than that at which factors are as large as the matrix, so never above the full rank.
        """
        whole, base, unit = self._sizes(layer)
        return (share * whole - base) / unit

    def smallest(self, layer: LayerInventory) -> float:
        """Return the share of the parameters that rank 1 stores."""
        whole, base, unit = self._sizes(layer)
        return (base + unit) / whole

    def _sizes(self, layer: LayerInventory) -> tuple[int, int, int]:
        """Return the parameters of all experts, of the base, and of one rank in all matrices."""
        shapes = matrix_shapes(layer)
        stored = self._base(1)
        base = sum(outputs * stored.stored_columns(inputs) for outputs, inputs in shapes)
        return layer.experts * sum(map(math.prod, shapes)), base, layer.experts * sum(map(sum, shapes))

    def _base(self, experts: int, weights: tuple[float, ...] = ()) -> SharedBase:
        """Return the base of so many experts; without ``weights`` every entry has its own."""
        kernel: Literal["mean", "fisher"] = "mean" if weights else "fisher"
        return SharedBase(members=tuple(range(experts)), kernel=kernel, weights=weights, columns=self.columns)


def fisher_weights(mass_E3: Array) -> tuple[float, ...]:
    """Return the share of each expert in the Fisher mass of its layer, gate, up and down together; equal where there is none."""
    mass_E = mass_E3.sum(axis=1)
    total = math.fsum(mass_E)  # the same in any order of experts
    if total <= 0.0:
        return (1.0 / len(mass_E),) * len(mass_E)
    return tuple(float(mass) / total for mass in mass_E)
