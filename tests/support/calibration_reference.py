"""All statistics by loops over tokens and hooks on the plain transformers model: slow, and written without our kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from methods.framework.inventory import Router
from methods.framework.stats import GATE_POWERS, NORM_POWERS
from tests.support.routing_reference import gates


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(F.cosine_similarity(a.double(), b.double(), dim=-1, eps=0.0))


class _Taps:
    """What passes through one decoder layer, for one sequence."""

    def __init__(self, layer: Any) -> None:
        self.seen: dict[str, torch.Tensor] = {}
        self.moe = hasattr(layer.mlp, "gate")
        layer.register_forward_hook(self._layer, with_kwargs=True)
        layer.post_attention_layernorm.register_forward_hook(self._named("residual", None))
        layer.mlp.register_forward_hook(self._named("mlp_input", "mlp_output"))
        if self.moe:
            layer.mlp.gate.register_forward_hook(self._gate)

    def _layer(self, module: Any, args: Any, kwargs: Any, output: torch.Tensor) -> None:
        self.seen["input"] = (args[0] if args else kwargs["hidden_states"])[0]
        self.seen["output"] = output[0]

    def _named(self, source: str, target: str | None) -> Any:
        def hook(module: Any, args: Any, output: torch.Tensor) -> None:
            self.seen[source] = args[0][0]
            if target is not None:
                self.seen[target] = output[0]

        return hook

    def _gate(self, module: Any, args: Any, output: Any) -> None:
        self.seen["logits"], self.seen["weights"], self.seen["indices"] = output


Marks = Sequence[Sequence[bool]]
"""For each window, which of its tokens count."""


def reference(
    model: Any, windows: Sequence[Sequence[int]], sigmoid: bool, marks: Marks | None = None
) -> dict[str, Any]:
    """Return statistics as {name: {layer: array}}, and ``hidden_cosine`` as one array.

    Args:
        model: of transformers.
        windows: token ids, each run alone.
        sigmoid: whether router scores are sigmoids.
        marks: which tokens count; None: all.
    """
    layers = model.model.layers
    taps = [_Taps(layer) for layer in layers]
    sums: dict[str, dict[int, Any]] = defaultdict(dict)
    gram = np.zeros((len(layers) + 1, len(layers) + 1))
    tokens = 0
    for number, window in enumerate(windows):
        with torch.no_grad():
            model.model(torch.tensor([list(window)]), use_cache=False)
        for t in range(len(window)):
            if marks is not None and not marks[number][t]:
                continue
            tokens += 1
            states = [tap.seen["input"][t] for tap in taps] + [taps[-1].seen["output"][t]]
            gram += np.array([[_cosine(a, b) for b in states] for a in states])
            for index, (tap, layer) in enumerate(zip(taps, layers, strict=True)):
                _add(sums, "block_cosine", index, _cosine(tap.seen["input"][t], tap.seen["output"][t]))
                if tap.moe:
                    _add_token(sums, index, layer, tap.seen, t, sigmoid)
    for name in ("block_cosine", "moe_residual_cosine", "moe_io_cosine"):
        sums[name] = {index: value / tokens for index, value in sums[name].items()}
    for index, layer in enumerate(layers):
        if taps[index].moe:
            gate_up, down = layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj
            width = down.shape[-1]
            squares = [m.detach().double().square().sum((1, 2)) for m in (gate_up[:, :width], gate_up[:, width:], down)]
            sums["weight_norm"][index] = torch.stack(squares, dim=1).numpy()
    return {**sums, "hidden_cosine": gram / tokens}


def _add(sums: dict[str, dict[int, Any]], name: str, index: int, value: Any) -> None:
    sums[name][index] = sums[name].get(index, 0.0) + value


def _add_token(sums: Any, index: int, layer: Any, seen: dict[str, torch.Tensor], t: int, sigmoid: bool) -> None:
    """Add what one token shows in one MoE layer."""
    experts = layer.mlp.experts
    x = seen["mlp_input"][t]
    logits = seen["logits"][t].double()
    scores = logits.sigmoid() if sigmoid else logits.softmax(0)
    _add(sums, "router_probability", index, scores.numpy())
    moments = np.zeros((experts.gate_up_proj.shape[0], len(GATE_POWERS), len(NORM_POWERS)))
    for weight, expert in zip(seen["weights"][t], seen["indices"][t], strict=True):
        with torch.no_grad():
            gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
            norm = (experts.down_proj[expert] @ (F.silu(gate) * up)).double().norm().item()
        for a in GATE_POWERS:
            for b in NORM_POWERS:
                moments[expert, a, b] += float(weight) ** a * norm**b
    _add(sums, "gate_norm_moment", index, moments)
    residual, output = seen["residual"][t], seen["mlp_output"][t]
    _add(sums, "moe_residual_cosine", index, _cosine(residual, residual + output))
    _add(sums, "moe_io_cosine", index, _cosine(x, output))


def expert_reference(
    model: Any, windows: Sequence[Sequence[int]], router: Router, top_k: int, sampled: int, cka: int
) -> dict[str, dict[int, Any]]:
    """Return {name: {layer: value}} of the statistics that look at experts one by one or in pairs, in float64.

    ``windows`` are in the order of the pass; ``sampled`` tokens are evenly spaced, and so are ``cka`` tokens among them.
    """
    found = ExpertReference(model, windows, router, top_k)
    return {**found.of_all(), **found.of_samples(sampled, cka)}


class ExpertReference:
    """All outputs of all experts on ``windows``, in the order of the pass, and every decision."""

    def __init__(
        self, model: Any, windows: Sequence[Sequence[int]], router: Router, top_k: int, marks: Marks | None = None
    ) -> None:
        taps = {i: _Taps(layer) for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}
        inputs: dict[int, list[Any]] = defaultdict(list)
        logits: dict[int, list[Any]] = defaultdict(list)
        streams: dict[int, list[Any]] = defaultdict(list)
        marks = marks or [[True] * len(window) for window in windows]
        self.window_of = [number for number, row in enumerate(marks) for mark in row if mark]
        for window, row in zip(windows, marks, strict=True):
            with torch.no_grad():
                model.model(torch.tensor([list(window)]), use_cache=False)
            for index, tap in taps.items():
                inputs[index] += [x.double().numpy() for x in compress(tap.seen["mlp_input"], row)]
                logits[index] += [x.double().tolist() for x in compress(tap.seen["logits"], row)]
                streams[index] += [x.double().numpy() for x in compress(tap.seen["residual"], row)]
        self.streams = streams
        self.mlps = {index: model.model.layers[index].mlp for index in taps}
        self.layers = {
            index: _Layer(mlp.experts, inputs[index], logits[index], router, top_k, _correction(mlp))
            for index, mlp in self.mlps.items()
        }

    def of_all(self) -> dict[str, dict[int, Any]]:
        """Return those of all tokens and of weights."""
        return _by_name(
            {
                index: {
                    **layer.of_tokens(self.window_of, self.streams[index]),
                    **layer.of_inputs(),
                    **_of_weights(self.mlps[index], layer.correction),
                }
                for index, layer in self.layers.items()
            }
        )

    def of_samples(self, sampled: int, cka: int) -> dict[str, dict[int, Any]]:
        """Return those of so many tokens, evenly spaced."""
        tokens = len(self.window_of)
        chosen = [i * tokens // min(sampled, tokens) for i in range(min(sampled, tokens))]
        compared = [chosen[i * len(chosen) // min(cka, len(chosen))] for i in range(min(cka, len(chosen)))]
        return _by_name({index: layer.of_samples(chosen, compared) for index, layer in self.layers.items()})


def _correction(mlp: Any) -> list[float] | None:
    bias = getattr(mlp.gate, "e_score_correction_bias", None)
    return None if bias is None else bias.double().tolist()


def _by_name(by_layer: dict[int, dict[str, Any]]) -> dict[str, dict[int, Any]]:
    names = next(iter(by_layer.values()))
    return {name: {index: values[name] for index, values in by_layer.items()} for name in names}


class _Layer:
    """One MoE layer on all tokens: every output of every expert, and every decision."""

    def __init__(
        self,
        experts: Any,
        inputs: list[Any],
        logits: list[list[float]],
        router: Router,
        top_k: int,
        correction: list[float] | None,
    ) -> None:
        self.inputs, self.logits, self.correction = inputs, logits, correction
        self.router, self.top_k = router, top_k
        self.count = len(logits[0])
        matrices = [m.detach().double().numpy() for m in (experts.gate_up_proj, experts.down_proj)]
        self.channels = [[_channels(matrices[0][e], x) for e in range(self.count)] for x in inputs]
        self.outputs = [[matrices[1][e] @ a for e, a in enumerate(row)] for row in self.channels]
        self.gates = [gates(row, router, top_k, correction) for row in logits]

    def routed(self, token: int, weights: dict[int, float]) -> Any:
        return sum((w * self.outputs[token][e] for e, w in weights.items()), np.zeros_like(self.inputs[token]))

    def of_tokens(self, window_of: list[int], streams: list[Any]) -> dict[str, Any]:
        count, hidden = self.count, len(self.inputs[0])
        logit_gram, together = np.zeros((count, count)), np.zeros((count, count))
        seen: list[list[Any]] = [[] for _ in range(count)]
        turned = np.zeros(count)
        squared = np.zeros((max(window_of) + 1, count))
        whole = np.zeros(max(window_of) + 1)
        for t, z in enumerate(self.logits):
            y, h = self.routed(t, self.gates[t]), streams[t]
            after = h + y
            turn = max(0.0, 1.0 - float(h @ after) / (np.linalg.norm(h) * np.linalg.norm(after)))
            whole[window_of[t]] += float(y @ y)
            for i in range(count):
                for j in range(count):
                    logit_gram[i, j] += z[i] * z[j]
                    together[i, j] += i in self.gates[t] and j in self.gates[t]
                less = gates(z, self.router, min(self.top_k, count - 1), self.correction, removed=i)
                change = y - self.routed(t, less)
                squared[window_of[t], i] += float(change @ change)
            for e, weight in self.gates[t].items():
                seen[e].append(self.outputs[t][e])
                turned[e] += turn * weight * np.linalg.norm(self.outputs[t][e])
        return {
            "logit_gram": logit_gram,
            "coactivation": together,
            "routed_output_mean": np.stack([np.mean(rows, axis=0) if rows else np.zeros(hidden) for rows in seen]),
            "routed_output_variance": np.stack([np.var(rows, axis=0) if rows else np.zeros(hidden) for rows in seen]),
            "residual_gate_norm": turned,
            "removal_loss": np.sqrt(squared).sum(axis=0),
            "routed_norm": np.sqrt(whole).sum(),
        }

    def of_inputs(self) -> dict[str, Any]:
        """Return means over the tokens of each expert, from lists of vectors."""
        values: dict[str, Any] = {}
        for side in ("input", "channel"):
            square, gated, gram = [], [], []
            for e in range(self.count):
                used = [t for t in range(len(self.inputs)) if e in self.gates[t]]
                rows = [self.inputs[t] if side == "input" else self.channels[t][e] for t in used]
                weights = [self.gates[t][e] for t in used]
                width = len(self.inputs[0]) if side == "input" else len(self.channels[0][0])
                some = max(len(used), 1)
                square.append(sum((x * x for x in rows), np.zeros(width)) / some)
                gated.append(sum((g * g * x * x for g, x in zip(weights, rows, strict=True)), np.zeros(width)) / some)
                gram.append(sum((np.outer(x, x) for x in rows), np.zeros((width, width))) / some)
            values[f"{side}_square"] = np.array(square)
            values[f"gated_{side}_square"] = np.array(gated)
            values[f"{side}_gram"] = np.array(gram)
        return values

    def of_samples(self, chosen: list[int], compared: list[int]) -> dict[str, Any]:
        count = self.count
        gram = np.array([[[f @ g for g in self.outputs[t]] for f in self.outputs[t]] for t in chosen])
        cosine = np.zeros((count, count))
        for t in chosen:
            for i, f in enumerate(self.outputs[t]):
                for j, g in enumerate(self.outputs[t]):
                    cosine[i, j] += f @ g / (np.linalg.norm(f) * np.linalg.norm(g)) / len(chosen)
        features = [np.stack([self.outputs[t][e] for t in compared]) for e in range(count)]
        return {
            "token_logits": np.array([self.logits[t] for t in chosen]),
            "token_gram": gram,
            "dense_output_mean": np.mean([self.outputs[t] for t in chosen], axis=0),
            "output_cosine": cosine,
            "output_cka": np.array([[linear_cka(a, b) for b in features] for a in features]),
        }


def _of_weights(mlp: Any, correction: list[float] | None) -> dict[str, Any]:
    rows = mlp.gate.weight.detach().double().numpy()
    features = []
    for gate_up, down in zip(mlp.experts.gate_up_proj, mlp.experts.down_proj, strict=True):
        gate, up = gate_up.detach().double().numpy().reshape(2, down.shape[1], -1)
        features.append(np.concatenate([gate.T, up.T, down.detach().double().numpy()], axis=1))
    return {
        "router_row_gram": np.array([[a @ b for b in rows] for a in rows]),
        "router_correction": np.zeros(len(rows)) if correction is None else np.array(correction),
        "weight_cka": np.array([[linear_cka(a, b) for b in features] for a in features]),
    }


def linear_cka(a: Any, b: Any) -> float:
    """Return the linear CKA of two sets of features (samples x features), from cross-covariances of centred columns."""
    a, b = a - a.mean(axis=0), b - b.mean(axis=0)
    return float((np.linalg.norm(b.T @ a) ** 2) / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b)))


def _channels(gate_up: Any, x: Any) -> Any:
    gate, up = np.split(gate_up @ x, 2)
    return gate / (1.0 + np.exp(-gate)) * up
