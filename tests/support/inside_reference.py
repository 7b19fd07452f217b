"""Statistics of channels, spectra and gradients by loops over tokens and autograd on weights: slow, without our kernels."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import chain, compress
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F


class _Block:
    """What passes through the experts of one layer, token by token."""

    def __init__(self, block: Any, places: Sequence[int] | None) -> None:
        self.experts = block.experts
        self.constants: Any = getattr(block, "constant_experts", None)
        self.count = len(block.experts.down_proj)
        self.places = range(self.count) if places is None else places
        self.tokens: list[tuple[np.ndarray[Any, Any], dict[int, float]]] = []
        block.experts.register_forward_pre_hook(self._before)

    def _before(self, module: Any, arguments: Any) -> None:
        inputs, rows, weights = arguments
        for x, own_rows, own_weights in zip(inputs, rows.tolist(), weights.tolist(), strict=True):
            gates: dict[int, float] = defaultdict(float)
            for row, weight in zip(own_rows, own_weights, strict=True):
                gates[self.places[row]] += weight
            self.tokens.append((x.detach().double().numpy(), gates))

    def matrices(self, expert: int) -> list[np.ndarray[Any, Any]]:
        gate, up = self.experts.gate_up_proj[expert].detach().double().numpy().reshape(2, -1, self._hidden)
        return [gate, up, self.experts.down_proj[expert].detach().double().numpy()]

    @property
    def _hidden(self) -> int:
        return int(self.experts.down_proj.shape[1])


def inside_reference(
    model: Any,
    windows: Sequence[Sequence[int]],
    places: dict[int, Sequence[int]] | None = None,
    gradients: bool = True,
    marks: Sequence[Sequence[bool]] | None = None,
) -> dict[str, dict[int, Any]]:
    """Return {name: {layer: value}} in float64.

    Args:
        model: of transformers.
        windows: token ids, each run alone.
        places: the experts that the router rows of mapped layers lead to.
        gradients: whether statistics of gradients are wanted, too.
        marks: for each window, which of its tokens count; None: all.
    """
    found, blocks = _seen(model, windows, places)
    if marks is not None:
        for block in blocks.values():
            block.tokens = list(compress(block.tokens, chain.from_iterable(marks)))
    result: dict[str, dict[int, Any]] = defaultdict(dict)
    for index, block in blocks.items():
        for name, value in {**_of_weights(block), **_of_tokens(block)}.items():
            result[name][index] = value
    return {**result, **_of_gradients(model, found, blocks, windows)} if gradients else result


def gradient_reference(
    model: Any, windows: Sequence[Sequence[int]], places: dict[int, Sequence[int]] | None = None
) -> dict[str, dict[int, Any]]:
    """Return those of gradients alone."""
    return _of_gradients(model, *_seen(model, windows, places), windows)


def _seen(
    model: Any, windows: Sequence[Sequence[int]], places: dict[int, Sequence[int]] | None
) -> tuple[dict[int, Any], dict[int, _Block]]:
    """Return the MoE sub-layers, and what passes through their experts on all windows."""
    found = {i: layer.mlp for i, layer in enumerate(model.model.layers) if hasattr(layer.mlp, "gate")}
    blocks = {i: _Block(mlp, (places or {}).get(i)) for i, mlp in found.items()}
    for window in windows:
        with torch.no_grad():
            model.model(torch.tensor([list(window)]), use_cache=False)
    return found, blocks


def _of_weights(block: _Block) -> dict[str, Any]:
    spectra = [[np.linalg.svd(m, compute_uv=False) for m in block.matrices(e)] for e in range(block.count)]
    return {"weight_spectrum": np.array(spectra)}


def _of_tokens(block: _Block) -> dict[str, Any]:
    values: dict[str, list[Any]] = defaultdict(list)
    for expert in range(block.count):
        gate, up, down = block.matrices(expert)
        inputs = [(x, gates[expert]) for x, gates in block.tokens if expert in gates]
        channels = [_channels(gate, up, x) for x, _ in inputs]
        width = down.shape[1]
        energy, peak, size = np.zeros(width), np.zeros(width), np.zeros(width)
        for (_, g), a in zip(inputs, channels, strict=True):
            for c in range(width):
                weighted = float(down[:, c] @ down[:, c]) * (g * a[c]) ** 2
                energy[c] += weighted
                peak[c] = max(peak[c], weighted)
                size[c] += abs(a[c]) / len(inputs)
        values["channel_energy"].append(energy)
        values["channel_peak"].append(peak)
        values["channel_magnitude"].append(size)
        values["routed_tokens"].append(float(len(inputs)))
        seen = [[x for x, _ in inputs], [x for x, _ in inputs], channels]
        values["whitened_spectrum"].append([_whitened(m, rows) for m, rows in zip((gate, up, down), seen, strict=True)])
    magnitude = sum(np.abs(x) for x, _ in block.tokens) / len(block.tokens)
    return {**{name: np.array(value) for name, value in values.items()}, "input_magnitude": magnitude}


def _channels(gate: Any, up: Any, x: Any) -> Any:
    before = gate @ x
    return before / (1.0 + np.exp(-before)) * (up @ x)


def _whitened(matrix: Any, rows: list[Any]) -> Any:
    """Return the roots of the eigenvalues of W (mean of x x^T) W^T: singular values of what W makes of the inputs."""
    if not rows:
        return np.linalg.svd(matrix, compute_uv=False)
    outputs = np.stack(rows) @ matrix.T / np.sqrt(len(rows))
    values = np.linalg.svd(outputs, compute_uv=False)
    return np.pad(values, (0, max(0, min(matrix.shape) - len(values))))[: min(matrix.shape)]


def _of_gradients(
    model: Any, mlps: dict[int, Any], blocks: dict[int, _Block], windows: Sequence[Sequence[int]]
) -> dict[str, dict[int, Any]]:
    """Return the statistics from autograd on all weights, with every expert's output a tensor of its own."""
    seen: dict[int, list[tuple[int, Any, Any]]] = defaultdict(list)  # (expert, channels, outputs) of the last window
    curvature: dict[int, Any] = {}
    fisher = {i: np.zeros((block.count, 3)) for i, block in blocks.items()}
    entries = {
        i: np.zeros((block.count, block.experts.down_proj.shape[2], 3, block.experts.down_proj.shape[1]))
        for i, block in blocks.items()
    }
    squares = {i: np.zeros((block.count, block.experts.down_proj.shape[2])) for i, block in blocks.items()}
    hidden = {i: block.experts.down_proj.shape[1] for i, block in blocks.items()}
    grams = {i: np.zeros((block.count, hidden[i], hidden[i])) for i, block in blocks.items()}
    for index, mlp in mlps.items():
        block = blocks[index]

        def forward(inputs: Any, rows: Any, weights: Any, index: int = index, block: _Block = block) -> Any:
            total = torch.zeros_like(inputs)
            for t, x in enumerate(inputs):
                gates: dict[int, Any] = {}
                for row, weight in zip(rows[t].tolist(), weights[t], strict=True):
                    gates[block.places[row]] = gates.get(block.places[row], 0.0) + weight
                for expert, weight in gates.items():
                    if expert >= block.count:
                        vector = block.constants[expert - block.count]
                        total = total.index_add(0, torch.tensor([t]), (weight * vector).unsqueeze(0))
                        continue
                    gate, up = (block.experts.gate_up_proj[expert] @ x).chunk(2)
                    channels = F.silu(gate) * up
                    output = block.experts.down_proj[expert] @ channels
                    output.retain_grad()
                    seen[index].append((expert, channels, output))
                    total = total.index_add(0, torch.tensor([t]), (weight * output).unsqueeze(0))
            return total

        mlp.experts.forward = forward
    for window in windows:
        seen.clear()
        model.zero_grad()
        ids = torch.tensor([list(window)])
        logits = model(ids, use_cache=False).logits[0]
        loss = sum((F.cross_entropy(logits[t], ids[0, t + 1]) for t in range(len(window) - 1)), logits.sum() * 0.0)
        loss.backward()
        for index, block in blocks.items():
            for expert, channels, output in seen[index]:
                d, a = output.grad.double().numpy(), channels.detach().double().numpy()
                grams[index][expert] += np.outer(d, d)
                squares[index][expert] += a * a
            slopes = [block.experts.gate_up_proj.grad.double(), block.experts.down_proj.grad.double()]
            for expert in range(block.count):
                for place, slope in enumerate([*slopes[0][expert].chunk(2), slopes[1][expert]]):
                    fisher[index][expert, place] += float(slope.square().sum()) / max(len(window) - 1, 1) ** 2
                    square = (slope.numpy() / max(len(window) - 1, 1)) ** 2 / len(windows)
                    entries[index][expert, :, place] += square.T if place == 2 else square
    for index, block in blocks.items():
        counts = [
            max(1, sum(e in gates for _, gates in block.tokens[: sum(map(len, windows))])) for e in range(block.count)
        ]
        curvature[index] = np.array(
            [
                [
                    squares[index][e, c] / n * (column @ grams[index][e] @ column) / n
                    for c, column in enumerate(block.matrices(e)[2].T)
                ]
                for e, n in enumerate(counts)
            ]
        )
    return {"channel_curvature": curvature, "fisher_mass": fisher, "entry_fisher": entries}
