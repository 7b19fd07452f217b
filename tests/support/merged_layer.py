"""One MoE layer with explicit weights: statistics by loops from their definitions, and the output under a layer plan."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from bench.laws import decisions
from bench.laws.cases import case
from methods.framework.layer_plan import LayerPlan
from methods.framework.method import Method
from methods.framework.plan import Plan
from methods.framework.stats import Stats
from methods.kernels.merging import ExpertMatrices, merged
from tests.support.inventories import toy_inventory

Array = NDArray[np.float64]


@dataclass(frozen=True)
class MergedLayer:
    """E experts (gate and up (E, F, D), down (E, D, F)), router rows (E, D), tokens (T, D); softmax, not renormalised."""

    gate: Array
    up: Array
    down: Array
    router: Array
    tokens: Array
    top_k: int = 2

    @classmethod
    def drawn(cls, seed: int, experts: int = 8, hidden: int = 4, width: int = 3, tokens: int = 40) -> MergedLayer:
        rng = np.random.default_rng(seed)
        return cls(
            rng.normal(size=(experts, width, hidden)),
            rng.normal(size=(experts, width, hidden)),
            rng.normal(size=(experts, hidden, width)),
            rng.normal(size=(experts, hidden)),
            rng.normal(size=(tokens, hidden)) + 0.3,
        )

    @classmethod
    def of_pairs(cls, seed: int, pairs: list[tuple[int, int]]) -> MergedLayer:
        """Return a layer where the second expert of each pair is a copy of the first, router row included."""
        layer = cls.drawn(seed, experts=2 * len(pairs))
        copied = {name: getattr(layer, name).copy() for name in ("gate", "up", "down", "router")}
        for first, second in pairs:
            for value in copied.values():
                value[second] = value[first]
        return replace(layer, **copied)

    @staticmethod
    def _run(gate: Array, up: Array, down: Array, x: Array) -> Array:
        z = np.array([float(row @ x) for row in gate])
        return np.asarray(down @ (z / (1.0 + np.exp(-z)) * (up @ x)))

    def outputs(self) -> Array:
        """Return f_j(x), shape (T, E, D)."""
        experts = range(len(self.gate))
        return np.array([[self._run(self.gate[j], self.up[j], self.down[j], x) for j in experts] for x in self.tokens])

    def logits(self) -> Array:
        return np.array([[float(row @ x) for row in self.router] for x in self.tokens])

    def gates(self, logits: Array) -> Array:
        """Return the weight of each row's expert, 0 unless chosen."""
        gates = np.zeros_like(logits)
        for t, row in enumerate(logits):
            chosen = np.argsort(-row, kind="stable")[: self.top_k]
            gates[t, chosen] = np.exp(row[chosen]) / np.exp(row).sum()
        return gates

    def forward(self, plan: LayerPlan | None = None) -> Array:
        """Return the layer's output under ``plan``, shape (T, D)."""
        plan = plan or LayerPlan()
        everyone = tuple(range(len(self.gate)))
        kept = everyone if plan.experts is None else plan.experts
        rows = everyone if plan.rows is None else plan.rows
        leads = plan.expert_map or tuple(range(len(kept)))
        merges = {merge.into: merge for merge in plan.merges}
        matrices = [ExpertMatrices(*map(torch.from_numpy, (self.gate[e], self.up[e], self.down[e]))) for e in everyone]
        router, experts = self.router[list(rows)].copy(), []
        for expert in kept:
            merge = merges.get(expert)
            experts.append(matrices[expert] if merge is None else merged(merge, [matrices[m] for m in merge.members]))
            if merge is not None and plan.router == "mean":
                mean = sum(w * self.router[m] for m, w in zip(merge.members, merge.weights, strict=True))
                router[rows.index(expert)] = mean / sum(merge.weights)
        gates = self.gates(np.array([[float(row @ x) for row in router] for x in self.tokens]))
        out = np.zeros_like(self.tokens)
        for t, x in enumerate(self.tokens):
            for place in np.flatnonzero(gates[t]):
                out[t] += gates[t, place] * self._run(*(m.numpy() for m in experts[leads[place]]), x)
        return out

    def stats(self) -> Stats:
        """Return the statistics that the merging methods read, for a model whose second layer is this one."""
        outputs, logits = self.outputs(), self.logits()
        gates = self.gates(logits)
        tokens, experts = logits.shape
        norms = np.linalg.norm(outputs, axis=2)
        moments = np.zeros((experts, 3, 3))
        for t in range(tokens):
            for j in np.flatnonzero(gates[t]):
                moments[j] += gates[t, j] ** np.arange(3)[:, None] * norms[t, j] ** np.arange(3)[None, :]
        features = [
            np.concatenate([g.T, u.T, d], axis=1) for g, u, d in zip(self.gate, self.up, self.down, strict=True)
        ]
        cosine, together = np.zeros((experts, experts)), np.zeros((experts, experts))
        weight_cka, output_cka = np.zeros((experts, experts)), np.zeros((experts, experts))
        for i in range(experts):
            for j in range(experts):
                weight_cka[i, j] = _cka(features[i], features[j])
                output_cka[i, j] = _cka(outputs[:, i], outputs[:, j])
                products = [outputs[t, i] @ outputs[t, j] / norms[t, i] / norms[t, j] for t in range(tokens)]
                cosine[i, j] = np.mean(products)
                together[i, j] = sum(gates[t, i] > 0 and gates[t, j] > 0 for t in range(tokens))
        values = {
            "gate_norm_moment": moments,
            "router_row_gram": np.array([[float(a @ b) for b in self.router] for a in self.router]),
            "coactivation": together,
            "router_correction": np.zeros(experts),
            "weight_cka": weight_cka,
            "output_cka": output_cka,
            "output_cosine": cosine,
            "dense_output_mean": outputs.mean(axis=0),
            "token_logits": logits,
            "token_gram": np.array([f @ f.T for f in outputs]),
        }
        return Stats({name: (None, value) for name, value in values.items()}, tokens)


def plan_of(method: Method, layer: MergedLayer) -> LayerPlan:
    """Return what ``method`` makes of ``layer``."""
    inventory = toy_inventory(experts=len(layer.gate), moe_layers=1)
    plan = method.plan(inventory, layer.stats().only(method.needs))
    assert Plan.loads(plan.dumps()) == plan
    return plan.layers[1]


def groups_of(plan: LayerPlan) -> list[tuple[int, ...]]:
    """Return the members of each merge, in order."""
    return sorted(merge.members for merge in plan.merges)


def relabelling(method: Method, family: str) -> None:
    """Check that relabelling the experts relabels what ``method`` decides, with its settings."""
    cls = type(method)
    configured = type(cls.__name__, (cls,), {"law_knobs": method.model_dump(), "__module__": cls.__module__})
    decisions.relabelling(configured, case(family))


def _cka(a: Array, b: Array) -> float:
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float(np.sum((b.T @ a) ** 2) / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b))
