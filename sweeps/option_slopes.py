"""How the divergence would change if a unit chose another option: one backward pass, and every option's output of its layer.

With the plan z realised, x_l the input and y_l the output of layer l's experts, and y_lk the output of option k on the same
input, a relaxed choice mixes outputs, y_l = sum_k p_k y_lk, so that dL/dp_k = <dL/dy_l, y_lk>.

Letters: B windows, S tokens of a window, T = B S, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from bench.applying.in_memory import realised
from bench.applying.resident_layer import ResidentLayer
from bench.models.decoder import decoder_of
from bench.models.output_head import OutputHead
from sweeps.losses import final_states
from sweeps.planner import LayerPlanner
from sweeps.resident import Resident
from sweeps.space.anchors import anchors, spread
from sweeps.space.levels import Levels, LevelSpace, Reals

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Slopes:
    """What one plan says of all options.

    Args:
        value: divergence of the plan on these windows.
        slopes: of each unit, dL/dp of every combination of its axes' levels.
        forwards: forward passes over the windows that it took: one, two for the backward pass, and for each option of a layer
            that layer's share of the source's FLOPs.
    """

    value: float
    slopes: tuple[Reals, ...]
    forwards: float


class OptionSlopes:
    """Measures slopes of plans on one text."""

    def __init__(self, planner: LayerPlanner, resident: Resident, windows_NS: Tensor, count: int | None = None) -> None:
        """Run the uncompressed model once.

        Args:
            planner: plans of the space.
            resident: the model.
            windows_NS: token ids.
            count: options along an axis that are run, those between on straight lines; None: all.
        """
        self.planner, self.resident, self.windows_NS = planner, resident, windows_NS
        self.space: LevelSpace = planner.space({})
        self.count = count or int(self.space.highest.max()) + 1
        self.layers = [int(name.split()[1].rstrip(",")) for name in self.space.units]
        self._base_NSD = final_states(resident.model, windows_NS, resident.batch_size)

    def at(self, levels_A: Levels, rows: slice = slice(None)) -> Slopes:
        """Return the divergence of an assignment and the slopes around it.

        Args:
            levels_A: a level for each axis.
            rows: windows that are read.
        """
        value, inputs, gradients = self._backward(levels_A, rows)
        known: list[dict[tuple[int, ...], float]] = [{} for _ in self.layers]
        for options in self._rounds(levels_A):
            other_A = levels_A.copy()
            for unit, option in options.items():
                other_A[list(self.space.members[unit])] = option
            with self._realised(other_A), torch.no_grad():
                for unit, option in options.items():
                    layer = self.layers[unit]
                    output_TD = self._block(layer)(inputs[layer])
                    known[unit][option] = float((gradients[layer].double() * output_TD.double()).sum())
        slopes = [spread(one, self._shape(unit), self._centre(unit, levels_A)) for unit, one in enumerate(known)]
        runs = sum(self._share(self.layers[unit]) * len(one) for unit, one in enumerate(known))
        return Slopes(value, tuple(slopes), 3.0 + runs)

    @property
    def forwards(self) -> float:
        """Forward passes that slopes take at most."""
        options = (
            self._share(layer) * len(anchors(self._shape(unit), self._shape(unit), self.count))
            for unit, layer in enumerate(self.layers)
        )
        return 3.0 + sum(options)

    def _backward(self, levels_A: Levels, rows: slice) -> tuple[float, dict[int, Tensor], dict[int, Tensor]]:
        """Return the divergence, and of each layer the input of its experts and the gradient of their output."""
        inputs: dict[int, Tensor] = {}
        added: dict[int, Tensor] = {}
        model = self.resident.model
        ids_BS = self.windows_NS[rows].to(model.device)
        base_BSD = self._base_NSD[rows].to(model.device)
        with self._realised(levels_A), ExitStack() as undo, torch.enable_grad():
            undo.enter_context(_frozen(model))
            for layer in sorted(set(self.layers)):
                handle = self._block(layer).register_forward_hook(_recorder(layer, inputs, added))
                undo.callback(handle.remove)
            hidden_BSD = decoder_of(model)(ids_BS, use_cache=False).last_hidden_state
            head = OutputHead.of(model)
            with torch.no_grad():
                base_BSV = head(base_BSD).float().log_softmax(-1)
            own_BSV = head(hidden_BSD).float().log_softmax(-1)
            loss = torch.nn.functional.kl_div(own_BSV, base_BSV, reduction="none", log_target=True).sum(-1).mean()
            gradients = torch.autograd.grad(loss, list(added.values()))
        return float(loss.detach()), inputs, dict(zip(added, gradients, strict=True))

    def _rounds(self, levels_A: Levels) -> Iterator[Mapping[int, tuple[int, ...]]]:
        """Yield units with an option each, one unit of a layer at a time, until every option has had its turn."""
        waiting: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        for unit, layer in enumerate(self.layers):
            options = anchors(self._shape(unit), self._centre(unit, levels_A), self.count)
            possible = set(self.space.combinations(unit))
            waiting.setdefault(layer, []).extend((unit, one) for one in options if one in possible)
        for turn in range(max(map(len, waiting.values()))):
            yield dict(own[turn] for own in waiting.values() if turn < len(own))

    def _shape(self, unit: int) -> list[int]:
        return [int(self.space.highest[axis]) + 1 for axis in self.space.members[unit]]

    def _centre(self, unit: int, levels_A: Levels) -> tuple[int, ...]:
        return tuple(int(levels_A[axis]) for axis in self.space.members[unit])

    def _share(self, layer: int) -> float:
        """Return the FLOPs of a whole layer as a share of the source's."""
        own = sum(
            float(np.where(np.isfinite(part), part, 0.0).max())
            for part, index in zip(self.space.sizes["flops"], self.layers, strict=True)
            if index == layer
        )
        return own / float(self.planner.limits.source["flops"])

    def _block(self, layer: int) -> nn.Module:
        return ResidentLayer(self.resident.model, self.resident.inventory, layer).block

    def _realised(self, levels_A: Levels) -> Any:
        plan, resident = self.planner.at(levels_A, {}).plan, self.resident
        return realised(resident.model, resident.inventory, plan, resident.stats, resident.made)


def _recorder(layer: int, inputs: dict[int, Tensor], added: dict[int, Tensor]) -> Any:
    """Return a hook that keeps the input of a block and adds zeros to its output, whose gradient is the output's."""

    def hook(module: nn.Module, given: Sequence[Tensor], output: Tensor) -> Tensor:
        inputs[layer] = given[0].detach()
        added[layer] = torch.zeros_like(output, requires_grad=True)
        return output + added[layer]

    return hook


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Let no parameter ask for a gradient inside."""
    asking = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asking:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in asking:
            parameter.requires_grad_(True)
