"""Quantisation: the weights of every routed expert, or of all linear layers, as integers of few bits; all experts stay.

Nothing is decided from statistics: the plan states bits, group and kernel, and the integers are found where the experts are
written. *Source*: the setting is that of the holistic study, arXiv 2406.02500, "Expert Slimming".
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from pydantic import Field

from methods.framework.allocation import depth_shares
from methods.framework.inside import LINEAR_MOMENTS, QUANTISATION_MOMENTS, Quantisation, Scope
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.linears import slimmed, unknown_readers
from methods.framework.method import Keep, LayerwiseMethod
from methods.framework.stats import Stats

BITS: Mapping[float, Literal[4, 8] | None] = {0.25: 4, 0.5: 8, 1.0: None}
"""Bits of a weight for each share of 16 bits; None leaves it as it is."""
LARGEST_GROUP, SMALLEST_GROUP = 128, 8
"""Ends of the range in which a group size is looked for where none is given; eight codes of 4 bits fill a word."""


class Quantising(LayerwiseMethod):
    """Store every routed expert in few bits; ``keep`` is the share of 16 bits that remains of a weight, scales not counted.

    With ``scope=all``, as the study does it, every other linear layer too: attention, shared experts, dense networks, but neither
    router nor output head.

    *Differs*: the inputs of all layers are those of the model before quantisation, unless the calibration's propagation is
    ``sequential``, which is for ``scope=experts``.
    """

    stages: ClassVar[frozenset[str]] = frozenset({"bits"})
    shares: ClassVar[tuple[float, ...]] = tuple(BITS)
    """Values of ``keep`` that a layer may have."""
    unsearched: ClassVar[frozenset[str]] = frozenset({"scope", "symmetric", "act_order"})
    kernel: ClassVar[Literal["rtn", "gptq", "awq"]]

    keep: Keep = Field(default=0.25, description="share of 16 bits that remains of a weight: 0.25, 0.5 or 1")
    scope: Scope = "experts"
    """The routed experts, or ``all`` linear layers: attention, routed and shared experts, and dense networks."""
    group: Literal[32, 64, 128] | None = None
    """Inputs that share a scale; None: the largest power of two from 8 to 128 that divides the inputs of a layer's matrices."""

    symmetric: bool = True
    """Whether an integer of 0 stands for a weight of 0; else each group has a zero point beside its scale."""

    @property
    def moments(self) -> frozenset[str]:
        """Moments of the inputs of the experts' matrices; none where all weights stay as they are."""
        if all(share == 1.0 for share in (self.keep if isinstance(self.keep, tuple) else (self.keep,))):
            return frozenset()
        beside = LINEAR_MOMENTS[self.kernel] if self.scope == "all" else frozenset()
        return QUANTISATION_MOMENTS[self.kernel] | beside

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
        group = self.group or self._common_group(inventory, layer)
        stated = {"scope": self.scope, "symmetric": self.symmetric, "kernel": self.kernel, **self._own}
        return LayerPlan(bits=Quantisation(bits=bits, group=group, **stated))

    @property
    def _own(self) -> dict[str, Any]:
        """Further statements of a kernel."""
        return {}

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Decide layer by layer; layers without experts stay as they are where experts are all that is quantised."""
        shares = self._shares(inventory)
        return [
            self.decide_layer(inventory, stats, index) if index in shares else LayerPlan()
            for index in range(len(inventory.layers))
        ]

    def _misfit(self, inventory: Inventory, layer: int) -> str | None:
        """Return why the inputs of the layer's matrices cannot be cut into groups, or None."""
        common = self._common_group(inventory, layer)
        for entry in slimmed(inventory.layers[layer], self.scope):
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
        """Return the share of each layer that is quantised."""
        layers = inventory.moe_layers if self.scope == "experts" else range(len(inventory.layers))
        return dict(zip(layers, depth_shares(self.keep, len(layers)), strict=True))

    def _common_group(self, inventory: Inventory, layer: int) -> int:
        """Return the largest power of two, 128 at most, that divides the inputs of all matrices that a layer quantises."""
        matrices = slimmed(inventory.layers[layer], self.scope)
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

    act_order: bool = False
    """Whether inputs take turns by falling mean square; groups stay those of successive inputs, with the scales of the source."""

    @property
    def _own(self) -> dict[str, Any]:
        return {"act_order": self.act_order}


class AWQ(Quantising):
    """Scale up the inputs that matter before rounding to the nearest; the norm before the experts and the rows of up undo it.

    *Source*: arXiv 2306.00978, section 3.2; inside experts, arXiv 2406.02500, "Expert Slimming".

    *Differs*: one scale for the inputs of a layer is searched over all of its experts, each with the tokens routed to it, and
    router and shared experts follow it in 16 bits; with ``scope=all`` shared experts take part in the search, with all tokens.
    Where fewer heads have values than queries, and with latent attention, the inputs of the output projection are not scaled.
    A matrix of 512 rows or more is judged by 256 to 511 of them, evenly spaced; see ``methods.kernels.awq`` for the rest.
    """

    name: ClassVar[str] = "awq"
    title: ClassVar[str] = "AWQ"
    source: ClassVar[str] = "arXiv 2306.00978, section 3.2"
    kernel: ClassVar[Literal["rtn", "gptq", "awq"]] = "awq"

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse norms into which no scale can be folded, and attentions of which nobody knows what reads the scaled inputs."""
        if any(entry.role == "norm.mlp_bias" for entry in inventory.tensors()):
            return "the norm before the experts has a bias, which a scale of what the experts read does not reach here"
        if inventory.norm_offset:
            return (
                f"the norm before the experts multiplies by its stored weight plus {inventory.norm_offset:g}, into which no "
                "scale is folded here; use gptq or rtn"
            )
        if reason := super().refuse(inventory):
            return reason
        unknown = [name for layer in inventory.layers for name in unknown_readers(layer)]
        if self.scope == "all" and unknown:
            return f"the inputs of all linear layers are scaled, and nobody knows which ones {unknown[0]} reads"
        return None
