"""What a run will take, before it begins: tokens, FLOPs, memory, scratch disk and hours of a device, from shapes and settings.

FLOPs are counted as ``methods.framework.cost`` counts them; factorisations while weights are written, which run in float32,
apart.
Not counted are the runs of a method that probes, fits in steps, evaluation and timing.

Letters: T tokens, S sampled tokens, E routed experts, K top-k, D hidden size, F expert width, X inputs of a matrix.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from bench.calibration.layers.weights import expert_width
from bench.calibration.sums.disk_array import layer_bytes
from bench.running.calibrator import KEPT_BYTES, Measured
from bench.settings.stage_settings import CalibrationConfig
from methods.framework import linears
from methods.framework.cost import cost_of
from methods.framework.errors import RefusedError, UnknownNameError
from methods.framework.inventory import EXPERT_ROLES, Inventory, LayerInventory
from methods.framework.stats import CATALOGUE

PROCESS = 500 << 20
"""Bytes of a process that has imported torch and transformers."""
STREAMS = 5
"""Copies of hidden states that are alive at once while a layer runs."""
SVD = 22
"""FLOPs of a thin singular value decomposition of an (m, n) matrix are 4 m n^2 + SVD n^3, with n the smaller."""
AWQ_GRID = 20
"""Scales that AWQ tries."""
FACTORISING = 0.1
"""Share of the float32 peak that factorisations reach."""


@dataclass(frozen=True, slots=True)
class Device:
    """A device, as its vendor states it.

    Args:
        name: for tables.
        flops: dense FLOPs a second in bfloat16.
        flops_float32: the same in float32, without tensor cores.
        memory: bytes.
    """

    name: str
    flops: float
    flops_float32: float
    memory: float


DEVICES = {
    "h100": Device("H100 SXM", 989.4e12, 66.9e12, 80e9),
    "h200": Device("H200", 989.4e12, 66.9e12, 141e9),
    "a100": Device("A100 80 GB", 312e12, 19.5e12, 80e9),
}
"""Those that an estimate can be asked for."""
UTILISATION = 0.3
"""Share of the bfloat16 peak that forward and backward passes reach."""
DISK = 2e9
"""Bytes a second at which weights are read and written."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one method takes.

    Args:
        tokens: of the corpus; 0 where weights alone are read.
        flops: of passes over the corpus and of sums over tokens.
        factorised: FLOPs of factorisations of weights and of Gram matrices.
        memory: most bytes that are held while statistics are measured and weights written.
        scratch: bytes on disk that are gone when the checkpoint is written.
        result: bytes of the checkpoint, at most.
        uncounted: whether the method also runs the model on candidates or fits in steps, which is not counted.
    """

    tokens: int
    flops: float
    factorised: float
    memory: int
    scratch: int
    result: int
    uncounted: bool

    def hours(self, device: Device) -> float:
        """Return the hours on a device: computing, reading the weights twice and writing them once."""
        computing = self.flops / (device.flops * UTILISATION) + self.factorised / (device.flops_float32 * FACTORISING)
        return (computing + 3 * self.result / DISK) / 3600


def device_named(name: str) -> Device:
    """Return a device.

    Raises:
        UnknownNameError: there is none of that name.
    """
    if name not in DEVICES:
        raise UnknownNameError("device of an estimate", name, tuple(DEVICES))
    return DEVICES[name]


def estimate(method: Measured, inventory: Inventory, config: CalibrationConfig, stages: Collection[str]) -> Estimate:
    """Return what measuring for a method and writing its result takes.

    Args:
        method: what decides.
        inventory: the model.
        config: corpus and bounds.
        stages: of plans that it writes.
    """
    names = method.measured
    costs = {CATALOGUE[name].cost for name in names}
    tokens = 0 if costs <= {"weights"} and not method.probing else config.sequences * config.length
    sampled, source = min(config.sampled_tokens, tokens), cost_of(inventory, config.length)
    streamed, flops = bool(costs - {"weights", "gradient"}) or method.probing, 0.0
    if tokens:
        head = 2 * inventory.vocab * inventory.hidden * config.length
        forward = config.sequences * (source.flops - head) if streamed else 0
        backward = 3 * config.sequences * source.flops if "gradient" in costs else 0
        flops = float(forward + backward + _sums(names, inventory, tokens, sampled))
    whole = source.bytes if "gradient" in costs else 0  # the model is resident
    scratch, hidden = _scratch(names, inventory, config, tokens if streamed else 0, sampled)
    return Estimate(
        tokens=tokens,
        flops=flops,
        factorised=float(_factorised(names - method.needs, names, stages, inventory)),
        memory=PROCESS + whole + hidden + max(map(_resident, inventory.layers)),
        scratch=scratch,
        result=source.bytes,
        uncounted=method.probing or _fits(method),
    )


def _fits(method: Measured) -> bool:
    """Return whether a method, or one of the methods of a recipe, fits something in steps."""
    steps = getattr(method, "steps", ())
    return isinstance(steps, int) or any(_fits(step.method) for step in steps)


def refuse_small_disk(estimates: Iterable[Estimate], folder: Path) -> None:
    """Refuse a run whose scratch data do not fit.

    Args:
        estimates: of its methods.
        folder: where scratch data lie; it need not be there yet.

    Raises:
        RefusedError: there is less room than the largest of them takes.
    """
    needed = max((one.scratch for one in estimates), default=0)
    while not folder.exists():
        folder = folder.parent
    if (free := shutil.disk_usage(folder).free) < needed:
        raise RefusedError(
            f"measuring takes {needed / 1e9:.1f} GB of scratch disk in {folder}, where {free / 1e9:.1f} GB are free; free space, "
            "name a store on another disk, use fewer sampled tokens or fewer windows, or set calibration.moments to by_layer"
        )


def _sums(names: Collection[str], inventory: Inventory, tokens: int, sampled: int) -> int:
    """Return the FLOPs of sums over tokens that are more than a pass over the outputs.

    Args:
        names: statistics.
        inventory: the model.
        tokens: T.
        sampled: S.
    """
    specs, total = [CATALOGUE[name] for name in names], 0
    every = any(spec.cost == "sampled" for spec in specs)
    for layer in inventory.layers:
        moe = layer.mlp == "moe"
        sizes = {"D": inventory.hidden, "F": expert_width(layer) if moe else 0}
        if every and moe:  # each expert runs on the sampled tokens
            total += 2 * sampled * sum(entry.parameters for entry in layer.with_role(*EXPERT_ROLES))
        for spec in specs:
            if not spec.defined_in(layer):
                continue
            if spec.on_disk and spec.dims[-2:] in (("D", "D"), ("F", "F")):
                total += 2 * tokens * layer.top_k * sizes[spec.dims[-1]] ** 2
            elif spec.dims == ("S", "E", "E"):
                total += 2 * sampled * layer.experts**2 * inventory.hidden
            elif spec.dims in (("Q",), ("V",)) and spec.on_disk:
                half = linears.sizes(layer, "attention" if spec.scope == "attention" else "network")
                total += 2 * tokens * half[1]
    return total


def _scratch(
    names: Collection[str], inventory: Inventory, config: CalibrationConfig, tokens: int, sampled: int
) -> tuple[int, int]:
    """Return the bytes on disk while measuring, and those of hidden states in memory.

    Args:
        names: statistics.
        inventory: the model.
        config: bounds.
        tokens: T whose hidden states are kept.
        sampled: S.
    """
    each = layer_bytes(inventory, names, sampled)
    kept = sum(own for own, _ in each) + max((passing for _, passing in each), default=0)
    largest = max((own + passing for own, passing in each), default=0)
    moments = kept if config.moments == "kept" or (config.moments == "auto" and kept <= KEPT_BYTES) else largest
    itemsize = 2 if config.states == "bfloat16" else 4
    hidden, room = tokens * inventory.hidden * itemsize, config.hidden_mib << 20
    states = STREAMS * tokens * inventory.hidden * 4
    return moments + (hidden if states > room else 0), min(states, room)


def _resident(layer: LayerInventory) -> int:
    """Return the bytes of what is held of a layer at once, in float32: all but its experts, one expert, and its Gram matrices."""
    beside = sum(entry.numel for entry in layer.tensors if entry.expert is None)
    if layer.mlp != "moe":
        return 4 * beside
    shapes = [entry.shape for entry in layer.with_role(*EXPERT_ROLES) if entry.expert == 0]
    return 4 * (beside + sum(map(math.prod, shapes)) + sum(inputs**2 for inputs in {shape[1] for shape in shapes}))


def _factorised(written: Collection[str], names: Collection[str], stages: Collection[str], inventory: Inventory) -> int:
    """Return the FLOPs of spectra that are measured and of factorisations while weights are written.

    Args:
        written: statistics that are read while weights are written alone.
        names: all statistics.
        stages: of the plan.
        inventory: the model.
    """
    spectra = any(CATALOGUE[name].dims[-1:] == ("R",) for name in names)
    grams = any(CATALOGUE[name].dims[-2:] == ("D", "D") for name in written)
    awq = grams and "input_magnitude" in written
    total = 0
    for layer in inventory.layers:
        for entry in layer.with_role(*EXPERT_ROLES) if layer.mlp == "moe" else ():
            outputs, inputs = entry.shape[-2:]
            small = min(outputs, inputs)
            decomposed = 4 * outputs * inputs * small + SVD * small**3
            total += decomposed * (spectra + ("rank" in stages))
            if "rank" not in stages and grams:
                error = 2 * outputs * inputs**2
                total += AWQ_GRID * error if awq else inputs**3 * 4 // 3 + error // 2
    return total
