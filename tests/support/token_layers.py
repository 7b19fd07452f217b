"""MoE layers as explicit tokens: logits and every expert's output, with statistics by loops over tokens and experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from methods.framework.stats import Stats

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TokenLayer:
    """T tokens of one layer: router logits (T, E), outputs of all experts (T, E, D), inputs (T, D); softmax, top-k.

    The layer has no norm, so its inputs are the residual stream too.
    """

    logits: Array
    outputs: Array
    inputs: Array
    top_k: int = 2

    @classmethod
    def drawn(cls, seed: int, tokens: int = 30, experts: int = 4, hidden: int = 4) -> TokenLayer:
        rng = np.random.default_rng(seed)
        scale = rng.uniform(0.5, 2.0, experts)
        return cls(
            rng.normal(size=(tokens, experts)) + rng.normal(size=experts),
            rng.normal(size=(tokens, experts, hidden)) * scale[:, None],
            rng.normal(size=(tokens, hidden)),
        )

    def gates(self) -> Array:
        """Return the renormalised weights of the chosen experts, 0 elsewhere, shape (T, E)."""
        gates = np.zeros_like(self.logits)
        for t, row in enumerate(self.logits):
            chosen = np.argsort(-row, kind="stable")[: self.top_k]
            weights = np.exp(row[chosen] - row.max())
            gates[t, chosen] = weights / weights.sum()
        return gates

    def routed(self, expert: int) -> list[int]:
        """Return the tokens that choose ``expert``."""
        return [int(t) for t in np.flatnonzero(self.gates()[:, expert])]

    def statistics(self) -> dict[str, Array]:
        """Return the statistics that the merging methods read, by loops."""
        tokens, experts = self.logits.shape
        gates = self.gates()
        moments = np.zeros((experts, 3, 3))
        mean, variance = np.zeros((experts, self.inputs.shape[1])), np.zeros((experts, self.inputs.shape[1]))
        residual, cosines = np.zeros(experts), np.zeros((experts, experts))
        for j in range(experts):
            routed = self.routed(j)
            for t in routed:
                norm = np.linalg.norm(self.outputs[t, j])
                for a in range(3):
                    for b in range(3):
                        moments[j, a, b] += gates[t, j] ** a * norm**b
                turned = self.inputs[t] + sum(gates[t, i] * self.outputs[t, i] for i in range(experts))
                residual[j] += max(0.0, 1.0 - _cosine(self.inputs[t], turned)) * gates[t, j] * norm
            if routed:
                mean[j] = np.mean([self.outputs[t, j] for t in routed], axis=0)
                variance[j] = np.mean([(self.outputs[t, j] - mean[j]) ** 2 for t in routed], axis=0)
            for i in range(experts):
                cosines[i, j] = np.mean([_cosine(self.outputs[t, i], self.outputs[t, j]) for t in range(tokens)])
        gram = np.array([[self.logits[:, i] @ self.logits[:, j] for j in range(experts)] for i in range(experts)])
        return {
            "gate_norm_moment": moments,
            "logit_gram": gram,
            "output_cosine": cosines,
            "routed_output_mean": mean,
            "routed_output_variance": variance,
            "residual_gate_norm": residual,
        }


def stats_of(*layers: TokenLayer) -> Stats:
    """Return the statistics of a model whose first layer is dense and whose others are ``layers``."""
    measured = [layer.statistics() for layer in layers]
    return Stats({name: (None, *(each[name] for each in measured)) for name in measured[0]}, len(layers[0].logits))


def stats_from(**per_layer: Sequence[object]) -> Stats:
    """Return statistics written by hand, one value for each layer after a dense one."""
    return Stats(
        {name: (None, *(np.asarray(value, dtype=float) for value in values)) for name, values in per_layer.items()}, 10
    )


def moments(
    hits: Sequence[float], gate: Sequence[float] | None = None, gate_norm: Sequence[float] | None = None
) -> Array:
    """Return a grid of moments with these numbers of tokens, sums of gates and sums of gates times norms."""
    grid = np.zeros((len(hits), 3, 3))
    grid[:, 0, 0] = hits
    grid[:, 1, 0] = hits if gate is None else gate
    grid[:, 1, 1] = hits if gate_norm is None else gate_norm
    return grid


def _cosine(a: Array, b: Array) -> float:
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / lengths if lengths > 0.0 else 0.0
