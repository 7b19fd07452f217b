"""Statistics: what may be measured in the one calibration pass, and the container that methods read.

Letters: E routed experts, A gate powers, N norm powers, B boundaries between decoder layers (L + 1), M the three matrices,
D hidden size, F expert width, R = min(D, F), S sampled tokens. Experts of unequal width count as padded with channels of
zeros to the widest of their layer.
Notation: g_j(x) weight that multiplies expert j's output (0 unless chosen), f_j(x) that output, T_j the tokens routed to j,
z(x) router logits, a the input of down, w_c column c of W_down. *Sampled* tokens are evenly spaced over the corpus, in its
order, and every expert runs on each of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from methods.framework.errors import RefusedError, StatsError, UnknownNameError
from methods.framework.plan import Plan

GATE_POWERS = (0, 1, 2)
NORM_POWERS = (0, 1, 2)

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class StatSpec:
    """Definition of a statistic.

    Args:
        dims: axis letters of its shape.
        scope: measured for each ``moe`` layer, for each decoder layer (``block``), or once for the ``model``.
        cost: ``weights`` needs no tokens, ``routed`` runs experts on their routed tokens only, ``sampled`` runs all experts
            on the sampled tokens, ``boundary`` keeps hidden states, ``gradient`` runs the whole resident model forward and
            backward on one window after another, always the model that is measured, whatever the propagation.
        definition: formula in words.
        unit: unit of its values.
    """

    name: str
    dims: tuple[str, ...]
    scope: Literal["moe", "block", "model"]
    cost: Literal["weights", "routed", "sampled", "boundary", "gradient"]
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
        StatSpec(
            "router_row_gram", ("E", "E"), "moe", "weights", "inner products of the router's weight rows", "weight^2"
        ),
        StatSpec(
            "weight_cka",
            ("E", "E"),
            "moe",
            "weights",
            "linear CKA of the experts' weights [W_gate^T | W_up^T | W_down], hidden dimensions as samples",
            "1",
        ),
        StatSpec(
            "weight_spectrum",
            ("E", "M", "R"),
            "moe",
            "weights",
            "singular values of gate, up, down, descending",
            "weight",
        ),
        StatSpec("routed_tokens", ("E",), "moe", "routed", "tokens routed to j", "tokens"),
        StatSpec("logit_gram", ("E", "E"), "moe", "routed", "sum over all tokens of z_i z_j", "logit^2 tokens"),
        StatSpec("coactivation", ("E", "E"), "moe", "routed", "tokens routed to both i and j", "tokens"),
        StatSpec(
            "routed_output_mean", ("E", "D"), "moe", "routed", "mean of f_j over T_j; 0 where T_j is empty", "output"
        ),
        StatSpec(
            "routed_output_variance",
            ("E", "D"),
            "moe",
            "routed",
            "variance of f_j over T_j; 0 if T_j is empty",
            "output^2",
        ),
        StatSpec(
            "residual_gate_norm",
            ("E",),
            "moe",
            "routed",
            "sum over T_j of max(0, 1 - cos(h, h + y(h))) g_j |f_j|_2, h the input and y the routed output of the MoE block",
            "output tokens",
        ),
        StatSpec(
            "removal_loss",
            ("E",),
            "moe",
            "routed",
            "sum over windows of the Frobenius norm of the change of the routed output when expert j alone is removed",
            "output tokens^0.5",
        ),
        StatSpec(
            "routed_norm",
            (),
            "moe",
            "routed",
            "sum over windows of the Frobenius norm of the routed output",
            "output tokens^0.5",
        ),
        StatSpec(
            "input_square", ("E", "D"), "moe", "routed", "mean over T_j of the squared inputs of gate and up", "input^2"
        ),
        StatSpec(
            "channel_square", ("E", "F"), "moe", "routed", "mean over T_j of the squared inputs of down", "channel^2"
        ),
        StatSpec(
            "gated_input_square",
            ("E", "D"),
            "moe",
            "routed",
            "mean over T_j of the squared inputs of gate and up, times g_j^2",
            "input^2",
        ),
        StatSpec(
            "gated_channel_square",
            ("E", "F"),
            "moe",
            "routed",
            "mean over T_j of the squared inputs of down, times g_j^2",
            "channel^2",
        ),
        StatSpec(
            "input_gram",
            ("E", "D", "D"),
            "moe",
            "routed",
            "mean over T_j of x x^T, x the input of gate and up; float32, a memory map",
            "input^2",
        ),
        StatSpec(
            "channel_gram",
            ("E", "F", "F"),
            "moe",
            "routed",
            "mean over T_j of a a^T, a the input of down; float32, a memory map",
            "channel^2",
        ),
        StatSpec(
            "whitened_spectrum",
            ("E", "M", "R"),
            "moe",
            "routed",
            "singular values, descending, of W S, W gate, up or down and S S^T the mean over T_j of x x^T, x the input of W; "
            "those of W where T_j is empty",
            "output",
        ),
        StatSpec(
            "input_magnitude",
            ("D",),
            "moe",
            "routed",
            "mean over all tokens of |x|, x the input of the MoE block after its norm",
            "input",
        ),
        StatSpec(
            "channel_magnitude", ("E", "F"), "moe", "routed", "mean over T_j of |a|; 0 where T_j is empty", "channel"
        ),
        StatSpec(
            "channel_energy",
            ("E", "F"),
            "moe",
            "routed",
            "|w_c|^2 times the sum over T_j of (g_j a_c)^2",
            "output^2 tokens",
        ),
        StatSpec(
            "channel_peak", ("E", "F"), "moe", "routed", "|w_c|^2 times the maximum over T_j of (g_j a_c)^2", "output^2"
        ),
        StatSpec(
            "channel_curvature",
            ("E", "F"),
            "moe",
            "gradient",
            "mean over T_j of a_c^2, times w_c^T G_j w_c with G_j the mean over T_j of d d^T; d is the gradient, in f_j(x) "
            "before its weighting by g_j, of the next-token cross-entropy summed over the window; 0 where T_j is empty",
            "nat^2",
        ),
        StatSpec(
            "fisher_mass",
            ("E", "M"),
            "moe",
            "gradient",
            "sum over windows of the squared Frobenius norm of the gradient, in gate, up, down, of the window's mean "
            "next-token cross-entropy",
            "nat^2 / weight^2 windows",
        ),
        StatSpec(
            "router_correction", ("E",), "moe", "weights", "correction bias of the router; 0 if it has none", "score"
        ),
        StatSpec("token_logits", ("S", "E"), "moe", "sampled", "router logits of the sampled tokens, float32", "logit"),
        StatSpec(
            "token_gram",
            ("S", "E", "E"),
            "moe",
            "sampled",
            "inner products f_i(x).f_j(x) at each sampled token, float32, a memory map",
            "output^2",
        ),
        StatSpec("dense_output_mean", ("E", "D"), "moe", "sampled", "mean of f_j over all sampled tokens", "output"),
        StatSpec("output_cosine", ("E", "E"), "moe", "sampled", "mean over sampled tokens of cos(f_i, f_j)", "1"),
        StatSpec(
            "output_cka", ("E", "E"), "moe", "sampled", "linear CKA of f_i(X) and f_j(X), X the sampled tokens", "1"
        ),
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
            stale |= _WHOLE_EXPERTS & self.values.keys()
        values = {
            name: _restrict(CATALOGUE[name], value, plan) for name, value in self.values.items() if name not in stale
        }
        return Stats(values, self.tokens, self.meta, self.stale | stale)


def by_expert(name: str, value: Array, experts: Sequence[int]) -> Array:
    """Return ``value`` of statistic ``name`` for ``experts`` in this order, along each of its axes that counts experts."""
    for axis, letter in enumerate(CATALOGUE[name].dims):
        if letter == "E":
            value = value.take(experts, axis=axis)
    return value


_WHOLE_EXPERTS = frozenset({"weight_norm", "weight_cka", "fisher_mass"})
"""Sums over all channels of an expert, from which those of channels that were cut cannot be taken."""


def by_channel(name: str, value: Array, channels: Sequence[Sequence[int]]) -> Array:
    """Return ``value`` of statistic ``name`` for these ``channels`` of each expert, padded with zeros to the most."""
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
        if layer.drop == "moe" and spec.scope == "moe":
            restricted.append(None)
            continue
        if value is not None and layer.experts is not None:
            value = by_expert(spec.name, value, layer.experts)
        if value is not None and layer.channels is not None:
            value = by_channel(spec.name, value, layer.channels)
        restricted.append(value)
    return tuple(restricted)
