"""Statistics: what may be measured in the one calibration pass, and the container that methods read.

Letters: E routed experts, A gate powers, N norm powers, B boundaries between decoder layers (L + 1), M the three matrices.
Notation: g_j(x) weight that multiplies expert j's output (0 unless chosen), f_j(x) that output, T_j the tokens routed to j.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from methods.errors import StatsError, UnknownNameError
from methods.plan import Plan

GATE_POWERS = (0, 1, 2)
NORM_POWERS = (0, 1, 2)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StatSpec:
    """Definition of a statistic.

    Args:
        dims: axis letters of its shape.
        scope: measured for each ``moe`` layer, for each decoder layer (``block``), or once for the ``model``.
        cost: ``weights`` needs no tokens, ``routed`` runs experts on their routed tokens only, ``boundary`` keeps hidden states.
        definition: formula in words.
        unit: unit of its values.
    """

    name: str
    dims: tuple[str, ...]
    scope: Literal["moe", "block", "model"]
    cost: Literal["weights", "routed", "boundary"]
    definition: str
    unit: str


CATALOGUE: Mapping[str, StatSpec] = {
    spec.name: spec
    for spec in (
        StatSpec("weight_norm", ("E", "M"), "moe", "weights", "squared Frobenius norm of gate, up, down", "weight^2"),
        StatSpec(
            "router_probability", ("E",), "moe", "routed", "sum over all tokens of the full router score", "tokens"
        ),
        StatSpec(
            "gate_norm_moment",
            ("E", "A", "N"),
            "moe",
            "routed",
            "sum over T_j of g_j^a |f_j|_2^b for a, b in 0, 1, 2; (0, 0) is the number of tokens routed to j",
            "output^b tokens",
        ),
        StatSpec(
            "moe_residual_cosine", (), "moe", "routed", "mean of cos(x, x + MoE(norm(x))), x before the norm", "1"
        ),
        StatSpec("moe_io_cosine", (), "moe", "routed", "mean of cos(h, MoE(h)), h the input of the MoE block", "1"),
        StatSpec("block_cosine", (), "block", "routed", "mean of cos(input, output) of the decoder layer", "1"),
        StatSpec(
            "hidden_cosine",
            ("B", "B"),
            "model",
            "boundary",
            "mean over sampled tokens of cos(h_a, h_b), h_b the hidden state that enters layer b (b = L: leaves the last)",
            "1",
        ),
    )
}


@dataclass(frozen=True)
class Stats:
    """Measured statistics: for each name, one float64 array per decoder layer (None where out of scope).

    Statistics of scope ``model`` hold a single array in a tuple of length one. ``tokens`` is the number of tokens
    measured; ``meta`` tells corpus, model and settings.
    """

    values: Mapping[str, tuple[Array | None, ...]]
    tokens: int = 0
    meta: Mapping[str, object] = field(default_factory=dict)

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
        if name not in self.values:
            raise StatsError(
                f"statistic {name!r} is not at hand; measured or declared: {', '.join(sorted(self.values)) or 'none'}. "
                "A method lists what it reads in `needs`."
            )
        return self.values[name]

    def only(self, names: Iterable[str]) -> Stats:
        """Return a view with no other statistics than ``names`` (those not measured stay absent)."""
        wanted = set(names)
        return Stats({name: value for name, value in self.values.items() if name in wanted}, self.tokens, self.meta)

    def restricted(self, plan: Plan) -> Stats:
        """Return these statistics in the coordinates of the checkpoint that ``plan`` makes: sliced, not measured anew."""
        values = {name: _restrict(CATALOGUE[name], value, plan) for name, value in self.values.items()}
        return Stats(values, self.tokens, self.meta)


def _restrict(spec: StatSpec, values: tuple[Array | None, ...], plan: Plan) -> tuple[Array | None, ...]:
    if spec.scope == "model":
        stays = [index for index, layer in enumerate(plan.layers) if layer.drop != "block"] + [len(plan.layers)]
        return tuple(None if value is None else value[np.ix_(stays, stays)] for value in values)
    restricted: list[Array | None] = []
    for value, layer in zip(values, plan.layers, strict=True):
        if layer.drop == "block":
            continue
        if layer.drop == "moe" and spec.scope == "moe":
            restricted.append(None)
        elif value is not None and layer.experts is not None and spec.dims[:1] == ("E",):
            restricted.append(value[list(layer.experts)])
        else:
            restricted.append(value)
    return tuple(restricted)
