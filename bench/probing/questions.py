"""Questions to a probe, brought into normal form: what is asked twice in two ways has one answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from methods.framework.errors import ConfigError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from methods.framework.probe import Decided
from methods.framework.stats import Array

Prefix = tuple[tuple[int, str], ...]
"""(layer, canonical JSON of its plan) of every layer that a plan changes, in order."""


class Questions:
    """Checks what is asked about one model, and normalises the plans in it."""

    def __init__(self, inventory: Inventory) -> None:
        """Answer for the model of ``inventory``."""
        self._inventory = inventory
        self._normal: dict[tuple[int, LayerPlan], LayerPlan] = {}

    def moe_layer(self, layer: int) -> None:
        """Check that ``layer`` holds routed experts.

        Raises:
            ConfigError: it does not.
        """
        if layer not in self._inventory.moe_layers:
            moe = ", ".join(map(str, self._inventory.moe_layers))
            raise ConfigError(f"the probe was asked about the experts of layer {layer}; layers with experts: {moe}")

    def plan(self, layer: int, plan: LayerPlan) -> LayerPlan:
        """Return the normal form of ``plan`` for ``layer``.

        Raises:
            PlanError: it does not fit the layer.
        """
        key = (layer, plan)
        if key not in self._normal:
            layers = [LayerPlan()] * len(self._inventory.layers)
            layers[layer] = plan
            self._normal[key] = Plan.of(self._inventory, layers).layers[layer]
        return self._normal[key]

    def decided(self, before: int, decided: Decided) -> dict[int, LayerPlan]:
        """Return the plans that change a layer, normalised, in order of layers.

        Raises:
            ConfigError: a plan is for layer ``before`` or a later one, so it cannot change what enters ``before``.
            PlanError: a plan does not fit its layer.
        """
        late = [layer for layer in decided if not 0 <= layer < before]
        if late:
            raise ConfigError(
                f"`decided` names layer {late[0]}; what enters layer {before} depends on earlier ones only"
            )
        normal = {layer: self.plan(layer, decided[layer]) for layer in sorted(decided)}
        return {layer: plan for layer, plan in normal.items() if plan != LayerPlan()}

    def block(self, layers: Sequence[int], candidates: Sequence[Sequence[LayerPlan]]) -> list[list[LayerPlan]]:
        """Return the normalised candidates of consecutive ``layers``.

        Raises:
            ConfigError: the layers are not consecutive, or a layer has no candidates.
            PlanError: a candidate does not fit its layer.
        """
        depth = len(self._inventory.layers)
        if not layers or list(layers) != list(range(layers[0], layers[0] + len(layers))) or layers[-1] >= depth:
            raise ConfigError(
                f"a block is a run of consecutive decoder layers among 0 to {depth - 1}, found {[*layers]}"
            )
        if len(candidates) != len(layers) or not all(candidates):
            counts = [len(options) for options in candidates]
            raise ConfigError(
                f"{len(layers)} layers need as many non-empty lists of candidates, found lengths {counts}"
            )
        return [[self.plan(layer, plan) for plan in options] for layer, options in zip(layers, candidates, strict=True)]

    def masks(self, masks: Mapping[int, Array]) -> dict[int, Array]:
        """Return the masks as float64 arrays.

        Raises:
            ConfigError: a layer without experts, or another number of factors than the layer has experts.
        """
        for layer, mask_E in masks.items():
            self.moe_layer(layer)
            due = (self._inventory.layers[layer].experts,)
            if np.shape(mask_E) != due:
                raise ConfigError(f"the mask of layer {layer} has shape {np.shape(mask_E)}, its experts make it {due}")
        return {layer: np.asarray(masks[layer], dtype=np.float64) for layer in sorted(masks)}


def prefix_of(decided: Mapping[int, LayerPlan], before: int) -> Prefix:
    """Return what identifies the states that enter layer ``before``; ``decided`` is normal."""
    return tuple((layer, canonical(plan)) for layer, plan in decided.items() if layer < before)


def canonical(plan: LayerPlan) -> str:
    """Return canonical JSON of a normal plan."""
    return plan.model_dump_json(exclude_defaults=True)
