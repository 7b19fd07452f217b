"""Quantisation: the weights of every routed expert as integers of few bits, all experts stay.

Nothing is decided from statistics: the plan states bits, group and kernel, and the integers are found where the experts are
written. *Source*: the setting is that of the holistic study, arXiv 2406.02500, "Expert Slimming".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from methods.framework.allocation import depth_shares
from methods.framework.inside import QUANTISATION_MOMENTS, Quantisation
from methods.framework.inventory import EXPERT_ROLES, Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Keep, LayerwiseMethod
from methods.framework.stats import Stats

BITS: Mapping[float, Literal[4, 8] | None] = {0.25: 4, 0.5: 8, 1.0: None}
"""Bits of a weight for each share of 16 bits; None leaves it as it is."""
LARGEST_GROUP, SMALLEST_GROUP = 128, 8
"""Ends of the range in which a group size is looked for where none is given; eight codes of 4 bits fill a word."""


class Quantising(LayerwiseMethod):
    """Store every routed expert in few bits; ``keep`` is the share of 16 bits that remains of a weight, scales not counted.

    *Differs*: shared experts, attention, router and dense layers keep their 16 bits, where the study quantises all linear
    layers; the inputs of all layers are those of the model before quantisation.
    """

    stages: ClassVar[frozenset[str]] = frozenset({"bits"})
    shares: ClassVar[tuple[float, ...]] = tuple(BITS)
    """Values of ``keep`` that a layer may have."""
    kernel: ClassVar[Literal["rtn", "gptq", "awq"]]

    keep: Keep = Field(default=0.25, description="share of 16 bits that remains of a weight: 0.25, 0.5 or 1")
    group: Literal[32, 64, 128] | None = None
    """Inputs that share a scale; None: the largest power of two from 8 to 128 that divides the inputs of a layer's matrices."""

    @property
    def moments(self) -> frozenset[str]:
        """Moments of the inputs of the experts' matrices; none where all weights stay as they are."""
        untouched = all(share == 1.0 for share in (self.keep if isinstance(self.keep, tuple) else (self.keep,)))
        return frozenset() if untouched else QUANTISATION_MOMENTS[self.kernel]

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse shares that are no whole number of bits that a kernel serves, and groups that do not divide the inputs."""
        if reason := super().refuse(inventory):
            return reason
        shares = self._shares(inventory)
        if unserved := sorted(set(shares.values()) - set(BITS)):
            return (
                f"keep={self.keep} leaves {16 * unserved[0]:.4g} of 16 bits in layer "
                f"{next(layer for layer, share in shares.items() if share == unserved[0])}; a layer keeps 0.25 (4 bits), "
                "0.5 (8 bits) or 1 (all)"
            )
        for layer, share in shares.items():
            if share < 1.0 and (reason := self._misfit(inventory, layer)):
                return reason
        return None

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """State the bits of this layer."""
        bits = BITS[self._shares(inventory)[layer]]
        if bits is None:
            return LayerPlan()
        group = self.group or _common_group(inventory, layer)
        return LayerPlan(bits=Quantisation(bits=bits, group=group, kernel=self.kernel))

    def _misfit(self, inventory: Inventory, layer: int) -> str | None:
        """Return why the inputs of the layer's matrices cannot be cut into groups, or None."""
        common = _common_group(inventory, layer)
        for entry in inventory.layers[layer].with_role(*EXPERT_ROLES):
            inputs = entry.shape[1]
            if self.group is None and inputs % SMALLEST_GROUP:
                return f"groups have at least {SMALLEST_GROUP} inputs, which do not divide the {inputs} of {entry.name}"
            if self.group is not None and inputs % self.group:
                served = ", which group=None takes" if common >= SMALLEST_GROUP else ""
                return (
                    f"group={self.group} does not divide the {inputs} inputs of {entry.name}; the largest power of two "
                    f"that divides those of all matrices of the layer is {common}{served}"
                )
        return None

    def _shares(self, inventory: Inventory) -> dict[int, float]:
        """Return the share of each MoE layer."""
        moe = inventory.moe_layers
        return dict(zip(moe, depth_shares(self.keep, len(moe)), strict=True))


def _common_group(inventory: Inventory, layer: int) -> int:
    """Return the largest power of two, 128 at most, that divides the inputs of all matrices of a layer's experts."""
    matrices = inventory.layers[layer].with_role(*EXPERT_ROLES)
    return math.gcd(LARGEST_GROUP, *{entry.shape[1] for entry in matrices})


class RTN(Quantising):
    """Round every weight to the nearest of its group's values; no tokens are needed.

    *Source*: the baseline of arXiv 2210.17323 (there "RTN").
    """

    name: ClassVar[str] = "rtn"
    title: ClassVar[str] = "RTN"
    source: ClassVar[str] = "arXiv 2210.17323, baseline"
    kernel: ClassVar[Literal["rtn", "gptq", "awq"]] = "rtn"


class GPTQ(Quantising):
    """Round one input of a matrix after another, and adjust the weights of those after it for what that changes.

    *Source*: arXiv 2210.17323, algorithm 1; inside experts, arXiv 2406.02500, "Expert Slimming".

    *Differs*: an expert with fewer tokens than a quarter of its inputs borrows second moments from its layer, one without
    tokens is rounded to the nearest; see ``methods.kernels.gptq`` and ``methods.kernels.shrinkage`` for the rest.
    """

    name: ClassVar[str] = "gptq"
    title: ClassVar[str] = "GPTQ"
    source: ClassVar[str] = "arXiv 2210.17323, algorithm 1"
    kernel: ClassVar[Literal["rtn", "gptq", "awq"]] = "gptq"


class AWQ(Quantising):
    """Scale up the inputs that matter before rounding to the nearest; the norm before the experts and the rows of up undo it.

    *Source*: arXiv 2306.00978, section 3.2; inside experts, arXiv 2406.02500, "Expert Slimming".

    *Differs*: one scale for the inputs of a layer is searched over all of its experts, each with the tokens routed to it, and
    router and shared experts follow it in 16 bits; see ``methods.kernels.awq`` for the rest.
    """

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    source: ClassVar[str] = "arXiv 2306.00978, section 3.2"
    kernel: ClassVar[Literal["rtn", "gptq", "awq"]] = "awq"

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse models whose norms are stored less a constant, since the scale is folded into the stored weight alone."""
        if inventory.norm_offset:
            return (
                f"the norm before the experts multiplies by its stored weight plus {inventory.norm_offset:g}, into which no "
                "scale is folded here; use gptq or rtn"
            )
        return super().refuse(inventory)
