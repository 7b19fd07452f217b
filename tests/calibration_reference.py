"""All statistics by loops over tokens and hooks on the plain transformers model: slow, and written without our kernels."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from methods.stats import GATE_POWERS, NORM_POWERS


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


def reference(model: Any, windows: list[list[int]], sigmoid: bool) -> dict[str, Any]:
    """Return statistics as {name: {layer: array}}, and ``hidden_cosine`` as one array."""
    layers = model.model.layers
    taps = [_Taps(layer) for layer in layers]
    sums: dict[str, dict[int, Any]] = defaultdict(dict)
    gram = np.zeros((len(layers) + 1, len(layers) + 1))
    tokens = 0
    for window in windows:
        with torch.no_grad():
            model.model(torch.tensor([window]), use_cache=False)
        for t in range(len(window)):
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
