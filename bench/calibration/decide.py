"""Decisions that are made while a model is measured, layer by layer, and reports of how far the pass is."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from bench.calibration.code_digest import decision_digest
from bench.store.store import digest_of
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.stats import Stats

if TYPE_CHECKING:
    from methods.framework.method import LayerwiseMethod


Progress = Callable[[int, int], None]
"""Called with (decoder layers finished, decoder layers); windows instead of layers where gradients alone are measured."""


class Decide(Protocol):
    """What becomes of MoE layer ``layer``, given the statistics of the layers up to it; ``digest`` names the rule."""

    digest: str

    def __call__(self, layer: int, stats: Stats) -> LayerPlan:
        """Return the decision."""
        ...


class LayerwiseDecision:
    """The decisions of a layer-wise method, for sequential propagation."""

    def __init__(self, method: LayerwiseMethod, inventory: Inventory) -> None:
        """Decide as ``method`` does on the model of ``inventory``."""
        self._method, self._inventory = method, inventory
        self.digest = digest_of({"method": method.name, "knobs": method.knobs, "code": decision_digest(type(method))})

    def __call__(self, layer: int, stats: Stats) -> LayerPlan:
        """Return the method's plan for ``layer``."""
        return self._method.decide_layer(self._inventory, stats.only(self._method.needs), layer)
