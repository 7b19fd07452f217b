"""Pruning of the hidden channels of routed experts: rows of gate and up with the column of down that they feed.

Letters: E routed experts, F expert width, X experts of several layers, U units of channels of one expert.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from methods.framework.allocation import depth_shares, largest_remainder
from methods.framework.errors import RefusedError
from methods.framework.inventory import EXPERT_ROLES, Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import LayerwiseMethod, Method
from methods.framework.stats import Array, Stats

Channels = tuple[int, ...]


class ChannelPruning(Method):
    """Keep the channels with the largest scores; ``keep`` is the share of the routed experts' channels that remain.

    Ties keep the earlier layer, the lower expert, the lower channel. Every expert keeps its best channel (its best ``multiple``).
    """

    stages: ClassVar[frozenset[str]] = frozenset({"channels"})
    unsearched: ClassVar[frozenset[str]] = frozenset({"multiple"})

    multiple: Literal[1, 2, 4, 8, 16, 32, 64, 128] = Field(
        default=1,
        description="channels of an expert stay in multiples of this, which kernels may need; ranked by their summed scores",
    )

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse experts that are stored in another form, and widths that are no multiple."""
        if reason := super().refuse(inventory):
            return reason
        for index in inventory.moe_layers:
            if inventory.layers[index].form is not None:
                return f"experts of layer {index} are stored in another form already, in which no channel can be cut"
            if (width := _width(inventory, index)) % self.multiple:
                return f"multiple={self.multiple} does not divide the {width} channels of the experts of layer {index}"
        return None

    def _plans(self, inventory: Inventory, scores: Mapping[int, Array], units: int) -> dict[int, LayerPlan]:
        """Return the plans of the layers of ``scores``, shapes (E, F), which share a budget of ``units``."""
        most = sum(value.size for value in scores.values()) // self.multiple
        fewest = sum(len(value) for value in scores.values())
        if units < fewest:
            raise RefusedError(
                f"{self.name}: keep={self.keep} leaves {units * self.multiple} channels for the {fewest} experts of "
                f"{_named(list(scores))}, each of which needs {self.multiple}; the smallest keep is {fewest / most:.3g}"
            )
        if units == most:
            return {layer: LayerPlan() for layer in scores}
        kept = iter(best_channels([own_F for value in scores.values() for own_F in value], units, self.multiple))
        plans = {}
        for layer, value in scores.items():
            channels = tuple(next(kept) for _ in value)
            whole = all(len(own) == value.shape[1] for own in channels)
            plans[layer] = LayerPlan(channels=None if whole else channels)
        return plans

    def _layer_units(self, inventory: Inventory) -> dict[int, int]:
        """Return the units that remain in each layer when each keeps its share, by largest remainder over the layers."""
        moe = inventory.moe_layers
        exact = [
            share * inventory.layers[index].experts * _width(inventory, index) / self.multiple
            for share, index in zip(depth_shares(self.keep, len(moe)), moe, strict=True)
        ]
        return dict(zip(moe, largest_remainder(exact), strict=True))


class CAMERA(ChannelPruning, LayerwiseMethod):
    """Keep in each layer the channels with the largest |w_c|^2 ((1 - a) sum_x (g_j a_c)^2 + a max_x (g_j a_c)^2).

    w_c is column c of the expert's W_down, a_c the input that it multiplies, g_j the gate of the expert, 0 where a token is
    not routed to it; a is the knob ``peak``. The share of channels that stays is the same for all layers, not for all experts.

    *Source*: arXiv 2508.02322, CAMERA-P; the formula and the default of ``peak`` are those of its official code.

    *Differs*: the official code ranks the channels of shared experts with those of routed ones, here they all stay; it sets
    weights to zero, here they are cut; it sums in bfloat16, here in float64; nothing bounds from below what it leaves of an
    expert, here one channel stays. There each layer sees the pruned layers before it, which is ``propagation="sequential"``.
    """

    name: ClassVar[str] = "camera_p"
    title: ClassVar[str] = "CAMERA-P"
    source: ClassVar[str] = "arXiv 2508.02322, CAMERA-P"

    peak: float = Field(
        default=0.9, ge=0.0, le=1.0, description="weight of a channel's largest energy on a token; the rest: of its sum"
    )

    @property
    def needs(self) -> frozenset[str]:
        """The sum and the maximum of each channel's energy, where they count."""
        names = {"channel_energy": self.peak < 1.0, "channel_peak": self.peak > 0.0}
        return frozenset(name for name, counts in names.items() if counts)

    def scores(self, stats: Stats, layer: int) -> Array:
        """Return the score of each channel of each expert of ``layer``, shape (E, F)."""
        weights = {"channel_energy": 1.0 - self.peak, "channel_peak": self.peak}
        parts = [weights[name] * stats.layer(name, layer) for name in sorted(self.needs)]
        total: Array = np.sum(parts, axis=0)
        return total

    def decide_layer(self, inventory: Inventory, stats: Stats, layer: int) -> LayerPlan:
        """Keep the top scorers of this layer."""
        units = self._layer_units(inventory)[layer]
        return self._plans(inventory, {layer: self.scores(stats, layer)}, units)[layer]


class HEAPr(ChannelPruning):
    """Keep the channels with the largest mean_x a_c^2 (w_c^T G_j w_c), the second-order loss of removing them.

    G_j is the mean over the expert's tokens of d d^T, d the gradient of the loss in the expert's output. Both means are over
    the tokens routed to the expert, so how many they are does not enter, and the channels of all experts compare.

    *Source*: HEAPr, ICLR 2026, the score of atomic experts and its global ranking.

    *Differs*: experts that no token reached score 0 and go first but for one channel (the official code gives them -1);
    w_c^T d is computed as the gradient in a_c, so no D x D matrix is kept; channels can also be ranked layer by layer.
    """

    name: ClassVar[str] = "heapr"
    title: ClassVar[str] = "HEAPr"
    source: ClassVar[str] = "HEAPr, ICLR 2026"

    scope: Literal["model", "layer"] = Field(
        default="model", description="rank all channels at once, or those of a layer"
    )

    @property
    def needs(self) -> frozenset[str]:
        """The score itself, which a backward pass gives."""
        return frozenset({"channel_curvature"})

    def refuse(self, inventory: Inventory) -> str | None:
        """Refuse depth knots where the ranking makes the depth profile."""
        if self.scope == "model" and not isinstance(self.keep, float):
            return "depth knots contradict scope='model', which finds the depth profile itself; use 'layer'"
        return super().refuse(inventory)

    def decide(self, inventory: Inventory, stats: Stats) -> list[LayerPlan]:
        """Rank over all layers or within each."""
        scores = {layer: stats.layer("channel_curvature", layer) for layer in inventory.moe_layers}
        units = self._layer_units(inventory)
        if self.scope == "model":
            plans = self._plans(inventory, scores, sum(units.values()))
        else:
            plans = {}
            for layer, own in scores.items():
                plans |= self._plans(inventory, {layer: own}, units[layer])
        return [plans.get(layer, LayerPlan()) for layer in range(len(inventory.layers))]


def best_channels(scores_XF: Sequence[Array], units: int, multiple: int) -> list[Channels]:
    """Return for each expert the channels that stay, ascending: its best unit, and then the best units of all.

    Units of an expert are its channels in descending order of their score, ``multiple`` at a time.

    Args:
        scores_XF: scores of the channels of each expert, a multiple of ``multiple``; widths may differ.
        units: units that stay in all, one for each expert at least.
        multiple: channels of a unit.
    """
    orders = [np.argsort(-own_F, kind="stable") for own_F in scores_XF]
    sums = [own_F[order].reshape(-1, multiple).sum(axis=1) for own_F, order in zip(scores_XF, orders, strict=True)]
    owner = np.repeat(np.arange(len(sums)), [len(own_U) for own_U in sums])
    place = np.concatenate([np.arange(len(own_U)) for own_U in sums])
    # The last key sorts first: best units of all experts, then by score, expert and place.
    ranked = np.lexsort((place, owner, -np.concatenate(sums), place > 0))
    counts = multiple * np.bincount(owner[ranked[:units]], minlength=len(sums))
    return [tuple(sorted(order[:count].tolist())) for order, count in zip(orders, counts, strict=True)]


def _width(inventory: Inventory, layer: int) -> int:
    """Return the channels of each expert of ``layer``, whose experts are whole."""
    return next(inventory.layers[layer].with_role(EXPERT_ROLES[0])).shape[0]


def _named(layers: Sequence[int]) -> str:
    return f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers"
