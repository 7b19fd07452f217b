"""Statistics of a large model that nobody measured: drawn layer by layer when a plan reads them, in the types of real ones.

Experts come in clusters of about two: an expert's output is mostly that of its cluster, and so is its router row. All
similarities follow from that. Shape letters: S sampled tokens, E routed experts, D hidden size, F expert width,
R singular values.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.probe import Decided, LayerView
from methods.framework.stats import CATALOGUE, Array, Stats

OWN = 0.4
"""Share of an expert's output that its cluster does not have."""
WIDTH = 32
"""Dimensions of the drawn outputs of experts."""
CORPUS = 65_536
"""Tokens of the corpus whose statistics are pretended."""


class Clock:
    """CPU seconds that drawing took, which are not the plan's."""

    def __init__(self) -> None:
        """Begin at 0."""
        self.drawing = 0.0

    def seconds(self) -> float:
        """Return the CPU seconds of the process without those of drawing."""
        return time.process_time() - self.drawing


class _Layers(Sequence[Any]):
    """One statistic of every layer; the last one that was read is kept."""

    def __init__(self, name: str, inventory: Inventory, tokens: int, clock: Clock) -> None:
        self._name, self._inventory, self._tokens, self._clock = name, inventory, tokens, clock
        self._last: tuple[int, Array] | None = None

    def __len__(self) -> int:
        return 1 if CATALOGUE[self._name].scope == "model" else len(self._inventory.layers)

    def __getitem__(self, index: Any) -> Any:
        spec = CATALOGUE[self._name]
        if spec.scope != "model" and not spec.defined_in(self._inventory.layers[index]):
            return None
        if self._last is None or self._last[0] != index:
            start = time.process_time()
            self._last = None  # so that two layers are never in memory
            self._last = index, _drawn(self._name, self._inventory, index, self._tokens)
            self._clock.drawing += time.process_time() - start
        return self._last[1]


def drawn_stats(inventory: Inventory, tokens: int, clock: Clock) -> Stats:
    """Return statistics of every name in the catalogue.

    Args:
        inventory: the model.
        tokens: sampled tokens of those that are kept token by token.
        clock: gets the time that drawing takes.
    """
    values = {name: _Layers(name, inventory, tokens, clock) for name in CATALOGUE}
    return Stats(cast(Mapping[str, tuple[Array | None, ...]], values), tokens=CORPUS)


def _clusters(experts: int, rng: np.random.Generator, size: int) -> Array:
    """Return vectors (E, size) of length about 1, alike within clusters."""
    cluster = rng.integers(0, max(1, experts // 2), experts)
    shared, own = (rng.normal(size=(n, size)) for n in (experts, experts))
    return np.asarray((shared[cluster] * (1.0 - OWN**2) ** 0.5 + own * OWN) / size**0.5)


def _drawn(name: str, inventory: Inventory, index: int, tokens: int) -> Array:
    """Return one statistic of one layer."""
    spec, layer = CATALOGUE[name], inventory.layers[index]
    rng = np.random.default_rng([index, *name.encode()])
    alike = np.random.default_rng(index)  # clusters are those of the layer, whatever the statistic
    experts = layer.experts
    if name == "token_logits":
        rows = _clusters(experts, alike, WIDTH)
        return np.asarray(rng.normal(size=(tokens, WIDTH)) @ rows.T * 2.0, dtype=np.float32)
    if name == "token_gram":
        directions = _clusters(experts, alike, WIDTH).astype(np.float32)
        outputs = rng.normal(size=(tokens, 1, WIDTH)).astype(np.float32) * directions
        outputs += 0.1 * rng.normal(size=outputs.shape).astype(np.float32)
        return np.asarray(outputs @ outputs.swapaxes(1, 2))
    if spec.dims == ("E", "E"):
        vectors = _clusters(experts, alike, WIDTH)
        gram = vectors @ vectors.T
        if spec.unit != "1":
            return np.asarray(gram)
        length = np.sqrt(np.diagonal(gram))
        cosine = np.clip(gram / length[:, None] / length, -1.0, 1.0)
        return np.asarray(cosine**2 if name.endswith("cka") else cosine)
    gate = next(layer.with_role("expert.gate")).shape if layer.mlp == "moe" else (1, 1)
    sizes = {"E": experts, "A": 3, "N": 3, "M": 3, "B": len(inventory.layers) + 1, "S": tokens}
    sizes |= {"D": inventory.hidden, "F": gate[0], "R": min(gate)}
    shape = [sizes[letter] for letter in spec.dims]
    value = np.asarray(rng.gamma(2.0, 0.5, shape))
    return np.asarray(-np.sort(-value, axis=-1)) if spec.dims[-1:] == ("R",) else value


class DrawnProbe:
    """Stands for the running model, whose time is not the plan's: it answers with random numbers."""

    def __init__(self, inventory: Inventory) -> None:
        """Answer for the model of ``inventory``."""
        self._inventory, self._rng = inventory, np.random.default_rng(0)

    def layer_view(self, layer: int, decided: Decided) -> LayerView:
        """Refuse, since methods that look at layers try every set, which large layers do not allow."""
        raise NotImplementedError("no method that is tried asks for it")

    def layer_error(self, layer: int, candidates: Sequence[LayerPlan], decided: Decided) -> Array:
        """Return a random error of each candidate.

        Args:
            layer: not read.
            candidates: of which there are as many answers.
            decided: not read.
        """
        return self._rng.random(len(candidates))

    def noise_error(self, layer: int, candidates: Sequence[LayerPlan]) -> Array:
        """Return a random error of each candidate."""
        return self._rng.random(len(candidates))

    def block_error(self, layers: Sequence[int], candidates: Sequence[Sequence[LayerPlan]], decided: Decided) -> Array:
        """Return a random error of each path.

        Args:
            layers: not read.
            candidates: of each layer.
            decided: not read.
        """
        return self._rng.random([len(options) for options in candidates])

    def mask_gradient(self, masks: Mapping[int, Array], step: int) -> tuple[float, dict[int, Array]]:
        """Return a random gradient of every mask."""
        return 0.0, {layer: self._rng.normal(size=len(mask)) for layer, mask in masks.items()}
