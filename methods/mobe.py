"""MoBE: gate and up of all experts of a layer as mixtures of a few bases that they share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from pydantic import Field

from methods.framework.allocation import depth_shares, largest_remainder
from methods.framework.errors import RefusedError
from methods.framework.inside import Bases
from methods.framework.inside_fit import matrix_shapes
from methods.framework.inventory import Inventory, LayerInventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import Stats

USUAL = 4
"""Experts to a base where the number of bases does not follow from ``keep``: a quarter, as in the paper's larger models."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What the experts of a layer store with m bases of rank r: E F D for down, and 2 (E F r + m r D + E m) for gate and up.

    As a share of 3 E F D this is 1/3 + 2r/(3D) + 2mr/(3EF), and the mixing weights.
    """

    experts: int
    width: int
    hidden: int

    @classmethod
    def of(cls, layer: LayerInventory) -> Sizes:
        """Return the sizes of ``layer``."""
        width, hidden = matrix_shapes(layer)[0]
        return cls(layer.experts, width, hidden)

    @property
    def full_rank(self) -> int:
        """The largest rank that means anything."""
        return min(self.width, self.hidden)

    def share(self, count: int, rank: int) -> float:
        """Return the share of the experts' parameters that is stored."""
        mixtures = 2 * (self.experts * self.width * rank + count * rank * self.hidden + self.experts * count)
        return (self._down + mixtures) / (3 * self._down)

    def count(self, share: float, rank: int) -> float:
        """Return the number of bases, not rounded, that stores ``share`` at this rank."""
        room = (3 * share - 1) * self._down - 2 * self.experts * self.width * rank
        return room / (2 * (rank * self.hidden + self.experts))

    def rank(self, share: float, count: int) -> float:
        """Return the rank, not rounded, that stores ``share`` with this many bases."""
        room = (3 * share - 1) * self._down - 2 * self.experts * count
        return room / (2 * (self.experts * self.width + count * self.hidden))

    @property
    def _down(self) -> int:
        return self.experts * self.width * self.hidden


class MoBE(Method):
    """W_i = A_i f(sum_j alpha_ij B_j) for gate and for up, with m bases B_j of rank r in each layer; down stays whole.

    The fit sees weights alone, so no tokens are needed. ``keep`` is the share of the routed experts' parameters; since down
    stays, more than a third remains. Without ``bases``, the rank is that of the matrices, as in the paper, and the number of
    bases follows from ``keep``; if not even one base of that rank fits, there is a base to four experts and the rank
    follows. With ``bases``, the rank follows. Numbers of layers differ by at most one (largest remainder).

    *Source*: arXiv 2508.05257; its ratio 1/3 + 2r/(3D) + 2mr/(3EF) counts all but the mixing weights, which count here.

    *Differs*: (1) the paper takes 10 to 30 thousand steps of Adam; here 2000 with a falling rate, and the rest of the fit is
    that of ``methods.kernels.shared_bases``. (2) A rank below that of the matrices is ours, for experts as wide as
    Mixtral's, where A_i alone would be larger than the matrix, and for a small ``keep``. (3) Experts are not divided into
    groups with bases of their own, as the paper does for the largest model.
    """

    name: ClassVar[str] = "mobe"
    title: ClassVar[str] = "MoBE"
    source: ClassVar[str] = "arXiv 2508.05257"
    stages: ClassVar[frozenset[str]] = frozenset({"rank"})
    unsearched: ClassVar[frozenset[str]] = frozenset({"rank"})
    law_knobs: ClassVar[Mapping[str, Any]] = {"steps": 20}

    bases: int | None = Field(
        default=None, ge=1, description="m: bases of gate, and of up, in a layer; None: from keep"
    )
    rank: float = Field(
        default=1.0, gt=0.0, le=1.0, description="largest rank of a base, as a share of that of the matrices"
    )
    activation: Literal["silu", "tanh"] = Field(default="silu", description="f")
    steps: int = Field(default=2000, ge=1, le=50_000, description="steps of Adam for each layer's gates, and ups")
    rate: float = Field(default=0.07, gt=0.0, le=1.0, description="learning rate of Adam at the start")
    seed: int = Field(default=0, ge=0, description="seed of the initial mixing weights")

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse more bases than experts."""
        if reason := super().refuse(inventory):
            return reason
        fewest = min(inventory.layers[layer].experts for layer in inventory.moe_layers)
        if self.bases is not None and self.bases > fewest:
            return f"bases={self.bases} exceeds the {fewest} experts that share them"
        return None

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """State the bases of each layer.

        Raises:
            RefusedError: no number of bases, or no rank, stores the share ``keep``.
        """
        shares = dict(zip(inventory.moe_layers, depth_shares(self.keep, len(inventory.moe_layers)), strict=True))
        exact_counts: dict[int, float] = {}
        exact_ranks: dict[int, float] = {}
        fixed: dict[int, int] = {}
        for layer, share in shares.items():
            if share == 1.0:
                continue
            sizes = Sizes.of(inventory.layers[layer])
            most = max(1, int(self.rank * sizes.full_rank + 0.5))
            if self.bases is None and sizes.count(share, most) >= 1.0:
                fixed[layer], exact_counts[layer] = most, _count(layer, sizes, share, most)
            else:
                fixed[layer] = self.bases or max(1, sizes.experts // USUAL)
                exact_ranks[layer] = _rank(layer, sizes, share, fixed[layer], most)
        counts, ranks = _rounded(exact_counts), _rounded(exact_ranks)
        return [
            LayerPlan(bases=self._stated(counts.get(layer, fixed[layer]), ranks.get(layer, fixed[layer])))
            if layer in fixed
            else LayerPlan()
            for layer in range(len(inventory.layers))
        ]

    def _stated(self, count: int, rank: int) -> Bases:
        return Bases(
            count=count, rank=rank, activation=self.activation, steps=self.steps, rate=self.rate, seed=self.seed
        )


def _count(layer: int, sizes: Sizes, share: float, rank: int) -> float:
    """Return the number of bases of ``rank`` that store ``share``, not rounded; at least 1."""
    found = sizes.count(share, rank)
    if found > sizes.experts:
        low, high = sizes.share(1, rank), sizes.share(sizes.experts, rank)
        raise RefusedError(_out_of_reach(layer, share, f"1 to {sizes.experts} bases of rank {rank}", low, high))
    return found


def _rank(layer: int, sizes: Sizes, share: float, count: int, most: int) -> float:
    """Return the rank, up to ``most``, at which ``count`` bases store ``share``, not rounded."""
    found = sizes.rank(share, count)
    if not 1.0 <= found <= most:
        low, high = sizes.share(count, 1), sizes.share(count, most)
        raise RefusedError(_out_of_reach(layer, share, f"{count} bases of rank 1 to {most}", low, high))
    return found


def _rounded(exact: dict[int, float]) -> dict[int, int]:
    return dict(zip(exact, largest_remainder(list(exact.values())), strict=True))


def _out_of_reach(layer: int, share: float, what: str, low: float, high: float) -> str:
    """Return the reason why ``share`` of ``layer`` cannot be met; bounds are rounded inwards."""
    return (
        f"mobe: keep={share:.3g} of layer {layer} is out of reach of {what}, which store between "
        f"{math.ceil(low * 1e4) / 1e4:.4g} and {math.floor(high * 1e4) / 1e4:.4g}"
    )
