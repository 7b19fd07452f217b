"""The container of statistics that methods read, and what becomes of it when experts go, are merged or lose channels.

What there is to measure is in the catalogue: one file of ``methods/stats`` for each group of statistics.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from methods.framework.catalogue import CATALOGUE
from methods.framework.errors import RefusedError, StatsError, UnknownNameError
from methods.framework.plan import Plan
from methods.framework.stat_spec import GATE_POWERS, NORM_POWERS, Array, StatSpec

__all__ = ["CATALOGUE", "GATE_POWERS", "NORM_POWERS", "Array", "StatSpec", "Stats", "by_channel", "by_expert"]


@dataclass(frozen=True)
class Stats:
    """Measured statistics: for each name, one float64 array per decoder layer (None where out of scope).

    Statistics of scope ``model`` hold a single array in a tuple of length one. ``tokens`` is the number of tokens
    measured; ``meta`` tells corpus, model and settings. ``stale`` lists statistics that were measured before experts were
    merged or changed inside, and that no slicing can bring up to date.
    """

    values: Mapping[str, tuple[Array | None, ...]]
    tokens: int = 0
    meta: Mapping[str, object] = field(default_factory=dict)
    stale: frozenset[str] = frozenset()

    def layer(self, name: str, index: int) -> Array:
        """Return statistic ``name`` of decoder layer ``index``, in the shape of its catalogue entry.

        Raises:
            StatsError: not measured, not declared in the method's ``needs``, or not defined for that layer.
        """
        values = self._named(name)
        value = values[index] if index < len(values) else None
        if value is None:
            raise StatsError(f"statistic {name!r} has no value for layer {index}; its scope is {CATALOGUE[name].scope}")
        return value

    def model(self, name: str) -> Array:
        """Return statistic ``name`` of scope ``model``."""
        value = self._named(name)[0]
        assert value is not None
        return value

    def _named(self, name: str) -> tuple[Array | None, ...]:
        if name not in CATALOGUE:
            raise UnknownNameError("statistic", name, CATALOGUE)
        if name in self.stale:
            raise RefusedError(
                f"statistic {name!r} describes experts that an earlier step merged or changed inside; measure it anew on the "
                "model of that step"
            )
        if name not in self.values:
            raise StatsError(
                f"statistic {name!r} is not at hand; measured or declared: {', '.join(sorted(self.values)) or 'none'}. "
                "A method lists what it reads in `needs`."
            )
        return self.values[name]

    def only(self, names: Iterable[str]) -> Stats:
        """Return a view with no other statistics than ``names`` (those not measured stay absent)."""
        wanted = set(names)
        values = {name: value for name, value in self.values.items() if name in wanted}
        return Stats(values, self.tokens, self.meta, self.stale & wanted)

    def restricted(self, plan: Plan) -> Stats:
        """Return these statistics in the coordinates of the checkpoint that ``plan`` makes: sliced, not measured anew."""
        merged = any(layer.merges or layer.constants for layer in plan.layers)
        stale = {name for name in self.values if "E" in CATALOGUE[name].dims} if merged else set()
        if any(layer.inside for layer in plan.layers):
            stale |= {name for name in self.values if "R" in CATALOGUE[name].dims}
        if any(layer.channels is not None for layer in plan.layers):
            stale |= {name for name in self.values if CATALOGUE[name].of_whole_experts}
        values = {
            name: _restrict(CATALOGUE[name], value, plan) for name, value in self.values.items() if name not in stale
        }
        return Stats(values, self.tokens, self.meta, self.stale | stale)


def by_expert(name: str, value: Array, experts: Sequence[int]) -> Array:
    """Return a statistic for some experts, along each of its axes that counts experts.

    Args:
        name: of the statistic in the catalogue.
        value: of one layer, axes as the catalogue says.
        experts: numbers of experts, in the order of the result; they may repeat.
    """
    for axis, letter in enumerate(CATALOGUE[name].dims):
        if letter == "E":
            value = value.take(experts, axis=axis)
    return value


def by_channel(name: str, value: Array, channels: Sequence[Sequence[int]]) -> Array:
    """Return a statistic for some channels of each expert, padded with zeros to the most.

    Args:
        name: of the statistic in the catalogue.
        value: of one layer, axes as the catalogue says; one without channels is returned as it is.
        channels: for each expert, numbers of channels in the order of the result.
    """
    letters = CATALOGUE[name].dims
    if "F" not in letters:
        return value
    width = max(map(len, channels))
    shape = [width if letter == "F" else size for letter, size in zip(letters, value.shape, strict=True)]
    result = np.zeros(shape, dtype=value.dtype)
    for expert, kept in enumerate(channels):
        row = value[expert]
        for axis, letter in enumerate(letters[1:]):
            if letter == "F":
                row = row.take(kept, axis=axis)
        result[expert][tuple(slice(size) for size in row.shape)] = row
    return result


def _restrict(spec: StatSpec, values: tuple[Array | None, ...], plan: Plan) -> tuple[Array | None, ...]:
    if spec.scope == "model":
        stays = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"] + [len(plan.layers)]
        return tuple(None if value is None else value[np.ix_(stays, stays)] for value in values)
    restricted: list[Array | None] = []
    for value, layer in zip(values, plan.layers, strict=True):
        if layer.drop == "block":
            continue
        if layer.drop == "moe" and spec.scope in ("moe", "network"):
            restricted.append(None)
            continue
        if value is not None and layer.experts is not None:
            value = by_expert(spec.name, value, layer.experts)
        if value is not None and layer.channels is not None:
            value = by_channel(spec.name, value, layer.channels)
        restricted.append(value)
    return tuple(restricted)
