"""DiEP: learn a factor on every expert's output by gradient, and keep the experts with the largest.

Shape letters: L MoE layers, E routed experts of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from methods.framework.allocation import largest_remainder, top
from methods.framework.errors import RefusedError
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import ProbingMethod
from methods.framework.probe import Probe
from methods.framework.stats import Array, Stats


class DiEP(ProbingMethod):
    """Learn alpha (a softmax inside each layer) and beta (over the layers) as masks, and rank all experts by alpha * beta.

    Expert j's output in layer l is multiplied by m = E alpha_lj L beta_l while the loss of the probe, cross-entropy plus
    0.01 ||F' - F||_F, goes down along the gradient in alpha and beta. The experts with the smallest m go first, over all
    layers at once, so layers keep different numbers; the router's rows are sliced.

    *Source*: DiEP (NeurIPS 2025): differentiable masks, alternating updates 3:1, learning rate 5e-3 with a cosine schedule,
    10 epochs of 128 samples in batches of 16, which is 80 updates: the default of ``steps``.

    *Differs*: the factors E and L make the uniform start the uncompressed model, whose weights are not trained for outputs
    divided by E. beta is a softmax over the layers, as alpha is inside one; the paper's normalisation of beta is not known to
    us. Updates are Adam's, which the paper's rate suggests. Each layer keeps what its router needs, with group-limited
    routers the same number in each group. An epoch is as many batches as the probe's tokens make: about
    8, as in the paper, unless the corpus is short. The paper's rule to skip experts at inference is no pruning, and is left out.
    """

    name: ClassVar[str] = "diep"
    title: ClassVar[str] = "DiEP"
    source: ClassVar[str] = "DiEP, NeurIPS 2025"
    stages: ClassVar[frozenset[str]] = frozenset({"experts"})
    law_knobs: ClassVar[Mapping[str, Any]] = {"steps": 8}

    steps: int = Field(default=80, ge=4, le=400, description="updates of alpha and beta together, one batch each")
    rate: float = Field(default=5e-3, gt=0.0, le=0.1, description="learning rate at the start; a cosine takes it to 0")
    ratio: int = Field(default=3, ge=1, le=10, description="updates of alpha for each update of beta")

    def decide_by_probe(self, inventory: Inventory, stats: Stats, probe: Probe) -> list[LayerPlan]:
        """Learn the masks and keep the experts with the largest; at ``keep`` = 1 the probe is not asked."""
        if not isinstance(self.keep, (int, float)):
            raise RefusedError(
                "diep: depth knots contradict a ranking over all layers, which finds the depth profile itself"
            )
        if self.keep == 1.0:
            return [LayerPlan()] * len(inventory.layers)
        masks, groups = self.masks(inventory, probe), inventory.router.groups
        counts = ranked_counts(inventory, self.keep, masks)
        return [
            LayerPlan(experts=top(masks[layer], counts[layer], groups)) if layer in counts else LayerPlan()
            for layer in range(len(inventory.layers))
        ]

    def masks(self, inventory: Inventory, probe: Probe) -> dict[int, Array]:
        """Return the learned mask of every MoE layer, each of shape (E,); 1 is the uncompressed model."""
        moe = inventory.moe_layers
        alpha = {layer: _Adam(inventory.layers[layer].experts) for layer in moe}
        beta = _Adam(len(moe))
        for step in range(self.steps):
            shares_L = _softmax(beta.values)
            shares = {layer: _softmax(alpha[layer].values) for layer in moe}
            masks = _masks(shares, shares_L)
            _, gradient = probe.mask_gradient(masks, step)
            rate = self.rate * (1.0 + math.cos(math.pi * step / self.steps)) / 2.0
            if step % (self.ratio + 1) < self.ratio:
                for layer in moe:
                    pull_E = gradient[layer] - shares[layer] @ gradient[layer]
                    alpha[layer].update(masks[layer] * pull_E, rate)
            else:
                pull_L = np.array([masks[layer] @ gradient[layer] for layer in moe])
                beta.update(pull_L - shares_L * pull_L.sum(), rate)
        return _masks({layer: _softmax(alpha[layer].values) for layer in moe}, _softmax(beta.values))


def ranked_counts(inventory: Inventory, keep: float, scores: dict[int, Array]) -> dict[int, int]:
    """Return how many experts stay in each layer when the lowest scores of all layers go first.

    With a group-limited router a layer loses one expert of each group at a time, judged by the mean of their scores.

    Args:
        inventory: the model.
        keep: share of all experts that stays.
        scores: of each expert, (E,), by index of the layer; the lowest go first.

    Raises:
        RefusedError: ``keep`` is less than the routers need.
    """
    groups = inventory.router.groups
    units = {layer: np.sort(score_E.reshape(groups, -1), axis=1).mean(axis=0) for layer, score_E in scores.items()}
    floors = {layer: inventory.router.fewest_experts(inventory.layers[layer].top_k) // groups for layer in scores}
    left = {layer: len(unit) for layer, unit in units.items()}
    surplus = sum(left.values()) - largest_remainder([keep * sum(left.values())])[0]
    if surplus > sum(left.values()) - sum(floors.values()):
        raise RefusedError(
            f"keep={keep} is less than the routers need; the smallest is {sum(floors.values()) / sum(left.values()):.3g}"
        )
    # The best units of each layer are its floor; the others of all layers go in ascending order, later layers first.
    removable = [(score, -layer) for layer, unit in units.items() for score in unit[: left[layer] - floors[layer]]]
    for _, negated in sorted(removable)[:surplus]:
        left[-negated] -= 1
    return {layer: count * groups for layer, count in left.items()}


def _masks(shares: dict[int, Array], shares_L: Array) -> dict[int, Array]:
    """Return E alpha L beta: shares relative to uniform ones."""
    return {
        layer: share_E * len(share_E) * share * len(shares_L)
        for (layer, share_E), share in zip(shares.items(), shares_L, strict=True)
    }


def _softmax(values: Array) -> Array:
    powers = np.exp(values - values.max())
    return np.asarray(powers / powers.sum())


class _Adam:
    """Values that follow gradients by Adam, with its usual constants."""

    def __init__(self, size: int) -> None:
        self.values = np.zeros(size)
        self._mean, self._square, self._count = np.zeros(size), np.zeros(size), 0

    def update(self, gradient: Array, rate: float) -> None:
        self._count += 1
        self._mean = 0.9 * self._mean + 0.1 * gradient
        self._square = 0.999 * self._square + 0.001 * gradient**2
        mean, square = self._mean / (1.0 - 0.9**self._count), self._square / (1.0 - 0.999**self._count)
        self.values = self.values - rate * mean / (np.sqrt(square) + 1e-8)
