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
    from bench.calibration.layers.layer_experts import Made
    from methods.framework.method import LayerwiseMethod


Progress = Callable[[int, int], None]
"""Called with (decoder layers finished, decoder layers); windows instead of layers where gradients alone are measured."""


class Decide(Protocol):
    """What becomes of MoE layer ``layer``, given the statistics of the layers up to it; ``digest`` names the rule."""

    digest: str

    def __call__(self, layer: int, stats: Stats) -> LayerPlan:
        """Return the decision."""
        ...

    def experts(self, layer: int, plan: LayerPlan, stats: Stats) -> Made | None:
        """Return what makes the experts of a decided layer, where its plan changes them inside.

        Args:
            layer: its index.
            plan: what becomes of it.
            stats: what was measured of it and of the layers before it.
        """
        ...


class Making(Protocol):
    """Makes experts that a plan changes inside; ``digest`` names all that their values depend on beside plan and statistics."""

    digest: str

    def __call__(self, layer: int, plan: LayerPlan, stats: Stats) -> Made:
        """Return what makes the experts of a layer."""
        ...


class LayerwiseDecision:
    """The decisions of a layer-wise method, for sequential propagation."""

    def __init__(self, method: LayerwiseMethod, inventory: Inventory, making: Making | None = None) -> None:
        """Decide as ``method`` does.

        Args:
            method: decides each layer.
            inventory: of the model.
            making: makes the experts of layers that it changes inside; None where it changes none.
        """
        self._method, self._inventory, self._making = method, inventory, making
        rule = {"method": method.name, "knobs": method.knobs, "code": decision_digest(type(method))}
        self.digest = digest_of(rule if making is None else {**rule, "making": making.digest})

    def __call__(self, layer: int, stats: Stats) -> LayerPlan:
        """Return the method's plan for ``layer``."""
        return self._method.decide_layer(self._inventory, stats.only(self._method.needs), layer)

    def experts(self, layer: int, plan: LayerPlan, stats: Stats) -> Made | None:
        """Return what makes the experts of ``layer``; None where they are as they were, or cut and merged alone.

        Args:
            layer: its index.
            plan: what becomes of it.
            stats: what was measured of it and of the layers before it.
        """
        return None if self._making is None or not plan.inside else self._making(layer, plan, stats)
