"""Expert slimming: weights inside every routed expert, or of all linear layers, become zero; all experts stay.

Nothing is decided from statistics: the plan states share, pattern and kernel, and which weights go is found where the
experts are written. *Source*: the name and the setting are those of the holistic study, arXiv 2406.02500, "Expert Slimming".
"""

from __future__ import annotations

from typing import ClassVar, Literal

from methods.framework.allocation import depth_shares
from methods.framework.errors import RefusedError
from methods.framework.inside import LINEAR_MOMENTS, SPARSITY_MOMENTS, Scope, Sparsity
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.linears import slimmed
from methods.framework.method import LayerwiseMethod
from methods.framework.stats import Stats


class Slimming(LayerwiseMethod):
    """Zero the same share of the weights of every routed expert; ``keep`` is the share of weights that stay.

    With ``scope=all`` the same share of every other linear layer too, over the depth of all decoder layers; the router and the
    gate of shared experts are never touched.

    *Differs*: the inputs of all layers are those of the dense model, as in the study's code. The original Wanda and SparseGPT
    let each layer see the sparse ones before it, which is the calibration's propagation ``sequential``, for ``scope=experts``.
    """

    stages: ClassVar[frozenset[str]] = frozenset({"sparsity"})
    stores_less: ClassVar[bool] = False
    unsearched: ClassVar[frozenset[str]] = frozenset({"pattern", "scope"})
    kernel: ClassVar[Literal["magnitude", "wanda", "moe_pruner", "sparsegpt"]]

    scope: Scope = "experts"
    """The routed experts, or ``all`` linear layers: attention, routed and shared experts, and dense networks."""
    pattern: Literal["unstructured", "2:4", "4:8"] = "unstructured"
    """Zeros anywhere in a row, or n in every m successive inputs, where ``keep`` is 0.5."""

    @property
    def moments(self) -> frozenset[str]:
        """Moments of the inputs of the experts' matrices; none where all weights stay."""
        if all(share == 1.0 for share in (self.keep if isinstance(self.keep, tuple) else (self.keep,))):
            return frozenset()
        beside = LINEAR_MOMENTS[self.kernel] if self.scope == "all" else frozenset()
        return SPARSITY_MOMENTS[self.kernel] | beside

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse a pattern that the matrices cannot be cut into, and any share that it does not have."""
        if reason := super().refuse(inventory):
            return reason
        if self.pattern == "unstructured":
            return None
        shares = set(self._shares(inventory).values())
        if shares - {0.5, 1.0}:
            return f"pattern {self.pattern} zeroes half of the weights, so keep is 0.5 (or 1: none), found {self.keep}"
        size = int(self.pattern.partition(":")[2])
        for layer in inventory.layers:
            for entry in slimmed(layer, self.scope):
                if entry.shape[1] % size:
                    return (
                        f"pattern {self.pattern} needs inputs in multiples of {size}, {entry.name} has {entry.shape[1]}"
                    )
        return None

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """State the share of this layer."""
        kept = self._shares(inventory)[layer]
        share = round(1.0 - kept, 9)  # 1 - 0.9 is a little less than 0.1, and would zero one weight too few
        if share >= 1.0:
            raise RefusedError(
                f"{self.name}: keep={self.keep} leaves no weight in layer {layer}; drop its experts instead"
            )
        if not share:
            return LayerPlan()
        return LayerPlan(sparsity=Sparsity(scope=self.scope, share=share, pattern=self.pattern, kernel=self.kernel))

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Decide layer by layer; layers without experts stay as they are where experts are all that is slimmed."""
        shares = self._shares(inventory)
        return [
            self.decide_layer(inventory, stats, index) if index in shares else LayerPlan()
            for index in range(len(inventory.layers))
        ]

    def _shares(self, inventory: Inventory) -> dict[int, float]:
        """Return the share of weights that stay in each layer that is slimmed."""
        layers = inventory.moe_layers if self.scope == "experts" else range(len(inventory.layers))
        return dict(zip(layers, depth_shares(self.keep, len(layers)), strict=True))


class Magnitude(Slimming):
    """Zero the smallest weights of each row; no tokens are needed.

    *Source*: arXiv 2406.02500, baseline of "Expert Slimming".

    *Differs*: compared within each row, as Wanda does, instead of over a whole matrix, so that methods differ in their
    scores alone. The study's code kept the smallest weights instead of the largest, so its numbers cannot be reproduced.
    """

    name: ClassVar[str] = "magnitude"
    title: ClassVar[str] = "Magnitude"
    source: ClassVar[str] = "arXiv 2406.02500, Expert Slimming"
    kernel: ClassVar[Literal["magnitude", "wanda", "moe_pruner", "sparsegpt"]] = "magnitude"


class Wanda(Slimming):
    """Zero where |w_ij| |X_j| is smallest in its row, X_j input j of the matrix over the tokens routed to the expert.

    *Source*: arXiv 2306.11695, equation 1; inside experts, arXiv 2406.02500, "Expert Slimming".
    """

    name: ClassVar[str] = "wanda"
    title: ClassVar[str] = "Wanda"
    source: ClassVar[str] = "arXiv 2306.11695, equation 1"
    kernel: ClassVar[Literal["magnitude", "wanda", "moe_pruner", "sparsegpt"]] = "wanda"


class MoEPruner(Slimming):
    """Zero where |w_ij| |X_j Gate| is smallest in its row: Wanda with each token weighted by the gate of the expert.

    *Source*: arXiv 2410.12013, the pruning metric; the distillation that follows there is not part of it.

    *Differs*: the inputs of W_down are weighted by the gate too; the paper writes the score for "the input of the matrix" and
    does not say whether it means this one.
    """

    name: ClassVar[str] = "moe_pruner"
    title: ClassVar[str] = "MoE-Pruner"
    source: ClassVar[str] = "arXiv 2410.12013, pruning metric"
    kernel: ClassVar[Literal["magnitude", "wanda", "moe_pruner", "sparsegpt"]] = "moe_pruner"

    scope: Literal["experts"] = "experts"
    """Gates weigh the tokens of experts; other layers have none."""


class SparseGPT(Slimming):
    """Zero the weights whose loss hurts the expert's outputs least, and adjust the weights after them in the row.

    *Source*: arXiv 2301.00774, algorithm 1, blocks of 128 inputs, damping 0.01; inside experts, arXiv 2406.02500.

    *Differs*: each row of a block gets the same share of zeros, where the paper takes a quantile over all rows of the block;
    see ``methods.kernels.sparsity`` for the rest.
    """

    name: ClassVar[str] = "sparsegpt"
    title: ClassVar[str] = "SparseGPT"
    source: ClassVar[str] = "arXiv 2301.00774, algorithm 1"
    kernel: ClassVar[Literal["magnitude", "wanda", "moe_pruner", "sparsegpt"]] = "sparsegpt"
