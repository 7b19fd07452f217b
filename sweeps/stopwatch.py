"""Times of a model and of its MoE blocks on the device at hand: in place within a forward pass, and in turn beside each other.

Letters: B requests, P tokens of a prompt, S tokens of a call, D hidden size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any, TypeAlias

import torch

from bench.applying.resident_layer import ResidentLayer
from bench.models.decoder import decoder_of
from bench.records.record import Interval
from bench.timing.intervals import median_interval
from methods.framework.inventory import Inventory
from sweeps.latency import Latency

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

PHASES = ("prefill", "decode")
"""All prompts at once; one more token of each."""

STEPS = 8
"""Steps of decoding that are measured at most; a request of more takes as long for each."""

Inputs: TypeAlias = Mapping[str, Sequence["Tensor"]]
"""By phase what a block is given, one tensor [B, S, D] for each call."""


@dataclass(frozen=True, slots=True)
class Profile:
    """Milliseconds of a model by phase, those of decoding for one step.

    Args:
        whole: of everything.
        layers: of each decoder layer.
        blocks: of the MoE block within it; 0 where there is none.
        norms: of the norm before that block, which goes with a dropped one.
    """

    whole: Mapping[str, float]
    layers: Sequence[Mapping[str, float]]
    blocks: Sequence[Mapping[str, float]]
    norms: Sequence[Mapping[str, float]]


class Stopwatch:
    """Takes times on one device: by its own events where calls return before it is done, else by the clock.

    With a single thread it is the CPU time of that thread, which other processes of the machine disturb least.
    """

    def __init__(self, device: torch.device) -> None:
        """Look at the device."""
        self.device, self.cuda = device, device.type == "cuda"
        self._clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def mark(self) -> Any:
        """Return this moment, as the device sees it."""
        if not self.cuda:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def between(self, start: Any, end: Any) -> float:
        """Return the milliseconds between two moments; waits for the device to reach the second."""
        if not self.cuda:
            return 1000.0 * float(end - start)
        end.synchronize()
        return float(start.elapsed_time(end))

    def timed(self, call: Callable[[], Any]) -> float:
        """Return the milliseconds of a call that begins on an idle device."""
        if self.cuda:
            torch.cuda.synchronize(self.device)
        start = self.mark()
        call()
        return self.between(start, self.mark())


@torch.no_grad()
def requests(model: PreTrainedModel, ids_BP: Tensor, steps: int, stopwatch: Stopwatch) -> dict[str, float]:
    """Run a batch of requests once; return milliseconds by phase, those of decoding for one step.

    Args:
        model: on its device.
        ids_BP: prompts.
        steps: tokens that follow each.
        stopwatch: of that device.
    """
    if stopwatch.cuda:
        torch.cuda.synchronize(stopwatch.device)
    marks = [stopwatch.mark()]
    output = model(ids_BP, use_cache=True, logits_to_keep=1)
    marks.append(stopwatch.mark())
    for _ in range(steps):
        following_B1 = output.logits[:, -1].argmax(-1, keepdim=True)
        output = model(following_B1, past_key_values=output.past_key_values, use_cache=True, logits_to_keep=1)
    marks.append(stopwatch.mark())
    return {
        "prefill": stopwatch.between(marks[0], marks[1]),
        "decode": stopwatch.between(marks[1], marks[2]) / steps,
    }


class Profiler:
    """Runs requests on the uncompressed model and looks at its decoder layers and MoE blocks meanwhile."""

    def __init__(self, model: PreTrainedModel, inventory: Inventory, ids_BP: Tensor, latency: Latency) -> None:
        """Prepare.

        Args:
            model: uncompressed.
            inventory: its inventory.
            ids_BP: prompts.
            latency: what is measured.
        """
        self.model, self.inventory, self.ids_BP = model, inventory, ids_BP.to(model.device)
        self.steps, self.repeats = min(STEPS, latency.generate), latency.repeats
        self.stopwatch = Stopwatch(model.device)
        self.blocks: dict[int, nn.Module] = {
            index: ResidentLayer(model, inventory, index).block for index in inventory.moe_layers
        }

    def profile(self) -> Profile:
        """Return the medians over the repeats, after one that does not count."""
        rounds = [self._round() for _ in range(self.repeats + 1)][1:]
        layers = range(len(self.inventory.layers))

        def by_phase(name: str) -> dict[str, float]:
            return {phase: median(one.get((name, phase), 0.0) for one in rounds) for phase in PHASES}

        return Profile(
            by_phase("whole"),
            [by_phase(f"layer {index}") for index in layers],
            [by_phase(f"block {index}") for index in layers],
            [by_phase(f"norm {index}") for index in layers],
        )

    def inputs(self, index: int) -> Inputs:
        """Return what the MoE block of a layer is given during one batch of requests."""
        given: list[Tensor] = []
        handle = self.blocks[index].register_forward_pre_hook(lambda module, inputs: given.append(inputs[0].detach()))
        try:
            requests(self.model, self.ids_BP, self.steps, self.stopwatch)
        finally:
            handle.remove()
        return {"prefill": given[:1], "decode": given[1:]}

    def ratios(self, index: int, block: nn.Module, inputs: Inputs) -> dict[str, Interval]:
        """Return the time of ``block`` as a share of that of a layer's own, by phase: the median of runs in turn.

        Args:
            index: number of the layer.
            block: what would stand in its place.
            inputs: of ``inputs``.
        """
        found = {}
        for phase, calls in inputs.items():
            shares = []
            for _ in range(self.repeats + 1):
                own, other = (self._run(module, calls) for module in (self.blocks[index], block))
                shares.append(other / own)
            found[phase] = median_interval(shares[1:])
        return found

    def _norm(self, index: int) -> nn.Module:
        resident = ResidentLayer(self.model, self.inventory, index)
        norm: nn.Module = self.model.get_submodule(resident.family.mlp_modules(index)[0])
        return norm

    @torch.no_grad()
    def _run(self, block: nn.Module, calls: Sequence[Tensor]) -> float:
        return self.stopwatch.timed(lambda: [block(hidden_BSD) for hidden_BSD in calls])

    def _round(self) -> dict[tuple[str, str], float]:
        """Return the milliseconds of one batch of requests by part and phase."""
        marks: list[tuple[str, Any, Any]] = []
        with ExitStack() as undo:
            parts = {f"layer {index}": layer for index, layer in enumerate(decoder_of(self.model).layers)}
            parts |= {f"block {index}": block for index, block in self.blocks.items()}
            parts |= {f"norm {index}": self._norm(index) for index in self.blocks}
            for name, module in parts.items():
                self._watch(undo, name, module, marks)
            whole = requests(self.model, self.ids_BP, self.steps, self.stopwatch)
        found = {("whole", phase): value for phase, value in whole.items()}
        calls: dict[str, int] = {}
        for name, start, end in marks:
            number = calls[name] = calls.get(name, 0) + 1
            phase = "prefill" if number == 1 else "decode"
            share = 1 if number == 1 else self.steps
            found[name, phase] = found.get((name, phase), 0.0) + self.stopwatch.between(start, end) / share
        return found

    def _watch(self, undo: ExitStack, name: str, module: nn.Module, marks: list[tuple[str, Any, Any]]) -> None:
        started: list[Any] = []

        def before(*_: Any) -> None:
            started.append(self.stopwatch.mark())

        def after(*_: Any) -> None:
            marks.append((name, started.pop(), self.stopwatch.mark()))

        undo.callback(module.register_forward_pre_hook(before).remove)
        undo.callback(module.register_forward_hook(after).remove)
