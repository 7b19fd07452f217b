"""Hidden states between decoder layers: of the original model, computed once, and of partly compressed ones.

Shape letters: T tokens, D hidden size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from bench.calibration.layers.hidden import ScratchRows
from bench.probing.decoder_layers import Attended, Layers
from bench.probing.questions import Prefix, prefix_of
from methods.framework.layer_plan import LayerPlan


class States:
    """States that enter layers, for any plans of the layers before; what was computed last is kept, up to a bound."""

    def __init__(
        self, layers: Layers, device: torch.device, dtype: torch.dtype, bound: int, folder: Path | None
    ) -> None:
        """Begin without states.

        Args:
            layers: runs the layers.
            device: where states are handed out.
            dtype: of the states.
            bound: bytes that the original states may take in memory, beyond which they lie in a file; other states may
                take as much again.
            folder: of that file; None takes the system's temporary folder.

        Raises:
            StatsError: there is no room for the file.
        """
        self._layers, self._device, self._bound = layers, device, bound
        tokens, hidden = layers.tokens, layers.inventory.hidden
        boundaries = len(layers.inventory.layers) + 1
        self._memory: list[Tensor] = []
        self._scratch: ScratchRows | None = None
        if boundaries * tokens * hidden * dtype.itemsize > bound:
            self._scratch = ScratchRows(boundaries * tokens, hidden, dtype, folder)
        self._known = 0
        self._recent: OrderedDict[tuple[str, int, Prefix], Tensor | Attended] = OrderedDict()

    def entering(self, layer: int, decided: Mapping[int, LayerPlan]) -> Tensor:
        """Return the states that enter ``layer`` (the depth: leave the last), (T, D); not to be changed.

        Layers are run from the last boundary on that is known for the same plans, so a caller that goes through the
        model layer by layer runs each of them once.
        """
        start = min((index for index in decided if index < layer), default=layer)
        if start == layer:
            return self._original(layer)
        for index in range(layer, start, -1):
            found = self._recent.get(("entering", index, prefix_of(decided, index)))
            if isinstance(found, Tensor):
                start = index
                hidden_TD = found
                break
        else:
            hidden_TD = self._original(start)
        for index in range(start, layer):
            plan = decided.get(index, LayerPlan())
            if plan.drop != "block":
                hidden_TD = self._layers.output(index, self.attended(index, decided, hidden_TD), plan)
            self._keep("entering", index + 1, prefix_of(decided, index + 1), hidden_TD)
        return hidden_TD

    def attended(self, layer: int, decided: Mapping[int, LayerPlan], hidden_TD: Tensor | None = None) -> Attended:
        """Return the states inside a layer, after its attention.

        Args:
            layer: index of the decoder layer.
            decided: plans of layers, of which those before ``layer`` count; those that are absent are uncompressed.
            hidden_TD: the states that enter it, if at hand; else they are computed.
        """

        def attend() -> Attended:
            return self._layers.attend(layer, self.entering(layer, decided) if hidden_TD is None else hidden_TD)

        found = self._recall("attended", layer, prefix_of(decided, layer), attend)
        assert isinstance(found, Attended)
        return found

    def target(self, layer: int) -> Tensor:
        """Return the output of the routed experts of ``layer`` in the original model, (T, D)."""
        found = self._recall(
            "target", layer, (), lambda: self._layers.routed(layer, self.attended(layer, {}).input_TD, LayerPlan())
        )
        assert isinstance(found, Tensor)
        return found

    def _original(self, boundary: int) -> Tensor:
        """Return the original model's states at ``boundary``; all up to it are computed and kept."""
        if self._known == 0:
            self._store(self._layers.embed())
        while self._known <= boundary:
            layer = self._known - 1
            attended = self._layers.attend(layer, self._read(layer))
            self._store(self._layers.output(layer, attended, LayerPlan()))
        return self._read(boundary)

    def _read(self, boundary: int) -> Tensor:
        if self._scratch is None:
            return self._memory[boundary]
        start = boundary * self._layers.tokens
        return self._scratch.read(start, start + self._layers.tokens).to(self._device)

    def _store(self, hidden_TD: Tensor) -> None:
        if self._scratch is None:
            self._memory.append(hidden_TD)
        else:
            self._scratch.write(self._known * self._layers.tokens, hidden_TD)
        self._known += 1

    def _recall(
        self, kind: str, layer: int, prefix: Prefix, compute: Callable[[], Tensor | Attended]
    ) -> Tensor | Attended:
        found = self._recent.get((kind, layer, prefix))
        if found is None:
            found = compute()
            self._keep(kind, layer, prefix, found)
        else:
            self._recent.move_to_end((kind, layer, prefix))
        return found

    def _keep(self, kind: str, layer: int, prefix: Prefix, value: Tensor | Attended) -> None:
        """Keep ``value``, and forget what was used longest ago while there is too much (the last one always stays)."""
        self._recent[kind, layer, prefix] = value
        self._recent.move_to_end((kind, layer, prefix))
        size = sum(kept.nbytes for kept in self._recent.values())
        while size > self._bound and len(self._recent) > 1:
            size -= self._recent.popitem(last=False)[1].nbytes
