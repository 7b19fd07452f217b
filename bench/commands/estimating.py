"""``moebench run --estimate``: what a run would take, told without any weight being read."""

from __future__ import annotations

from pathlib import Path

from bench.checkpoint.checkpoint import Checkpoint
from bench.checkpoint.outline import has_weights, outline
from bench.checkpoint.source import local_folder
from bench.commands.printing import console, print_rows
from bench.running.estimate import DISK, FACTORISING, UTILISATION, device_named, estimate, refuse_small_disk
from bench.running.planned import Compression, Planned
from bench.running.recipe import Recipe
from bench.settings.run_settings import RunConfig
from bench.store.store import Store
from methods.framework.inventory import Inventory


def print_estimate(config: RunConfig, store: Path, on: str) -> None:
    """Print what each method of a run would take.

    Args:
        config: the run.
        store: where it would keep its work.
        on: name of the device whose hours are told.

    Raises:
        RefusedError: the disk is too small.
        MoebenchError: a method, device or model that is not there.
    """
    device, inventory = device_named(on), _inventory(config)
    compressions: list[Compression] = [one.configured() for one in config.methods]
    compressions += [Recipe.configured(one) for one in config.recipes]
    compressions += [Planned.read(path, inventory) for path in config.plans]
    rows, found = [], []
    for one in compressions:
        if reason := None if isinstance(one, (Recipe, Planned)) else one.refuse(inventory):
            rows.append((one.name, f"refused: {reason}", "", "", "", "", ""))
            continue
        told = estimate(one, inventory, config.calibration, one.stages)
        found.append(told)
        cells = (f"{told.memory / 1e9:.1f}", f"{told.scratch / 1e9:.1f}", f"{told.result / 1e9:.1f}")
        flops = f"{told.flops + told.factorised:.2g}"
        rows.append((one.name, f"{told.tokens:,}", flops, *cells, f"{told.hours(device):.2g}{'+' * told.uncounted}"))
    print_rows(
        ("method", "tokens", "FLOPs", "memory, GB", "scratch, GB", "checkpoint, GB", f"hours, {device.name}"), rows
    )
    assumed = (
        f"assumed: {UTILISATION:.0%} of {device.flops / 1e12:.0f} TFLOP/s for passes, {FACTORISING:.0%} of "
        f"{device.flops_float32 / 1e12:.0f} for factorisations, {DISK / 1e9:.0f} GB/s of disk; checkpoints are at most as large "
        "as the model; evaluation and timing are not counted"
    )
    out = console()
    out.print(assumed, soft_wrap=True, highlight=False, markup=False)
    if any(one.uncounted for one in found):
        out.print(
            "+: the method also runs the model on candidates or fits in steps, which is not counted", highlight=False
        )
    refuse_small_disk(found, Store(store).cache)


def _inventory(config: RunConfig) -> Inventory:
    folder, _ = local_folder(config.model, config.revision)
    if (folder / "config.json").exists() and not has_weights(folder):
        return outline(folder).inventory
    return Checkpoint.open(config.model, config.revision, config.trust_remote_code).inventory
