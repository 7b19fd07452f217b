"""What a search may state of layers without a method's rule: experts per token, and whether a layer stays at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.stats import Stats
from methods.registry import method_class, names


class TopK(Method):
    """Every MoE layer routes each token to ``top_k`` experts; none goes, so fewer weights are active and none is saved.

    *Source*: experts per token by layer, as in LExI, arXiv 2509.02753; there found by evolution from a score on random inputs.
    """

    name: ClassVar[str] = "top_k"
    title: ClassVar[str] = "Top-k"
    source: ClassVar[str] = "arXiv 2509.02753"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})
    stores_less: ClassVar[bool] = False
    unsearched: ClassVar[frozenset[str]] = frozenset({"keep"})

    keep: float = Field(default=1.0, ge=1.0, le=1.0, description="no share: no expert goes")
    top_k: int = Field(default=1, ge=1, description="experts of each token")

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """State the number, in layers that have more."""
        return [
            LayerPlan(top_k=self.top_k) if layer.mlp == "moe" and self.top_k < layer.top_k else LayerPlan()
            for layer in inventory.layers
        ]


class Drop(Method):
    """MoE sub-layers or whole decoder layers go, each where the search says so."""

    name: ClassVar[str] = "drop"
    title: ClassVar[str] = "Drop"
    source: ClassVar[str] = "arXiv 2406.02500 drops by similarity; here a search chooses"
    stages: ClassVar[frozenset[str]] = frozenset({"blocks", "sublayers"})
    unsearched: ClassVar[frozenset[str]] = frozenset({"keep"})

    keep: float = Field(default=1.0, ge=1.0, le=1.0, description="no share: what goes is said by `drop`")
    drop: Literal["none", "moe", "block"] = Field(default="none", description="what of each layer goes")

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """State it of every MoE layer."""
        return [LayerPlan(drop=self.drop if layer.mlp == "moe" else "none") for layer in inventory.layers]


STATEMENTS: Mapping[str, type[Method]] = {"top_k": TopK, "drop": Drop}
"""Steps of a search beside the methods of the registry."""


def step_names() -> list[str]:
    """Return the names that a step may have."""
    return [*names(), *STATEMENTS]


def step_class(name: str) -> type[Method]:
    """Return the class of a step, a method or a statement.

    Raises:
        UnknownNameError: neither; names the closest method.
    """
    return STATEMENTS[name] if name in STATEMENTS else method_class(name)
