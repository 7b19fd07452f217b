"""Predicted times of plans beside measured ones.

    python -m bench.perf.latencies [--model FOLDER] [--batch 1] [--prompt 256] [--generate 16] [--plans 4] [--out results.json]

Leaves with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from bench.applying.apply import apply
from bench.checkpoint.checkpoint import Checkpoint
from bench.experts.grouped import preferred
from bench.experts.stored_module import CompressedExperts
from bench.models.load import load_model
from bench.pocket import pocket_path
from bench.store.store import Store
from bench.timing.intervals import median_interval
from methods.framework.inside import LowRank
from methods.framework.inventory import Inventory
from methods.framework.layer_plan import LayerPlan
from methods.framework.plan import Plan
from sweeps.latencies import Latencies, prompts
from sweeps.latency import Latency
from sweeps.opening import open_resident
from sweeps.stopwatch import PHASES, STEPS, Stopwatch, requests
from sweeps.sweep_config import parse_sweep

BAR = 0.2
"""Largest distance from 1 of predicted over measured, in the median over plans, for prompts and for decoding."""


def options(inventory: Inventory, layer: int) -> dict[str, LayerPlan]:
    """Return options of a layer that change its time: fewer experts, fewer of a token, narrow ones, factors, none."""
    own = inventory.layers[layer]
    width, hidden = next(own.with_role("expert.gate")).shape
    half = tuple(range(0, width, 2))
    rank = width * hidden // (2 * (width + hidden))
    return {
        "source": LayerPlan(),
        "half of the experts": LayerPlan(experts=tuple(range(0, own.experts, 2))),
        "top-1": LayerPlan(top_k=1),
        "half of the channels": LayerPlan(channels=(half,) * own.experts),
        "half of the rank": LayerPlan(rank=LowRank(ranks=((rank,) * 3,) * own.experts)),
        "dropped": LayerPlan(drop="moe"),
    }


def plans(inventory: Inventory, mixed: int) -> dict[str, Plan]:
    """Return plans whose layers are all alike, one of each option, and ``mixed`` whose layers draw theirs."""
    layers = inventory.moe_layers
    choices = {layer: options(inventory, layer) for layer in layers}
    rng = np.random.default_rng(0)
    named: dict[str, dict[int, LayerPlan]] = {
        name: {layer: choices[layer][name] for layer in layers} for name in choices[layers[0]] if name != "source"
    }
    for number in range(mixed):
        drawn = {layer: list(choices[layer].values())[int(rng.integers(len(choices[layer])))] for layer in layers}
        named[f"mixed {number}"] = drawn
    return {
        name: Plan.of(inventory, [own.get(layer, LayerPlan()) for layer in range(len(inventory.layers))])
        for name, own in named.items()
    }


def measured(base: Any, model: Any, ids: torch.Tensor, latency: Latency) -> dict[str, Any]:
    """Return the time of a model as a share of the base's by phase: median and interval of runs in turn.

    Args:
        base: uncompressed.
        model: another.
        ids: prompts.
        latency: what is measured.
    """
    watch, steps = Stopwatch(base.device), min(STEPS, latency.generate)
    shares: dict[str, list[float]] = {phase: [] for phase in PHASES}
    for _ in range(latency.repeats + 1):
        own, other = (requests(one, ids.to(base.device), steps, watch) for one in (base, model))
        for phase in PHASES:
            shares[phase].append(other[phase] / own[phase])
    return {phase: median_interval(values[1:]) for phase, values in shares.items()}


def compared(path: str, latency: Latency, mixed: int, device: str) -> list[dict[str, Any]]:
    """Return one row for each plan and phase: predicted and measured share of the base's time.

    Args:
        path: of the model.
        latency: what is measured.
        mixed: plans whose layers differ.
        device: where.
    """
    windows = {"corpus": "pocket", "sequences": 4, "length": 128, "seed": 1}
    settings = {"name": "perf", "model": path, "method": "random", "space": {"keep": {"by": "layer"}}, "device": device}
    objectives = [{"kind": "nll", "windows": windows}]
    config = parse_sweep({**settings, "calibration": {**windows, "seed": 0}, "objectives": objectives})
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        resident = open_resident(config, Path(folder))
        ids = prompts(resident, config.labelled, latency)
        times = Latencies(resident, latency, ids, Store(Path(folder)))
        source = times.profile.whole
        checkpoint = Checkpoint.open(path)
        for number, (name, plan) in enumerate(plans(resident.inventory, mixed).items()):
            written = Path(folder) / f"written-{number}"
            apply(checkpoint, plan, written)
            model = load_model(written).to(resident.model.device)
            for module in model.modules():
                if isinstance(module, CompressedExperts):
                    module.finish(grouped=all(map(preferred, module.parameters())))
            found, expected = measured(resident.model, model, ids, latency), times.plan(plan.layers)
            rows += [_row(name, phase, expected[phase] / source[phase], found[phase]) for phase in PHASES]
    return rows


def _row(name: str, phase: str, predicted: float, found: Any) -> dict[str, Any]:
    return {
        "plan": name,
        "phase": phase,
        "predicted": predicted,
        "measured": found.median,
        "low": found.low,
        "high": found.high,
        "ratio": predicted / found.median,
    }


def off(rows: list[dict[str, Any]]) -> Mapping[str, float]:
    """Return by phase how far predicted over measured lies from 1, in the median over plans."""
    return {phase: median(abs(row["ratio"] - 1) for row in rows if row["phase"] == phase) for phase in PHASES}


def main() -> int:
    """Measure, print, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default=str(pocket_path("pocket-mixtral")))
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=256)
    parser.add_argument("--generate", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--plans", type=int, default=4, help="whose layers differ")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    asked = parser.parse_args()
    latency = Latency(batch=asked.batch, prompt=asked.prompt, generate=asked.generate, repeats=asked.repeats)
    rows = compared(asked.model, latency, asked.plans, asked.device)
    table = Table("plan", "phase", "predicted", "measured", "interval", "predicted / measured")
    for row in rows:
        interval = f"[{row['low']:.2f}, {row['high']:.2f}]"
        shown = (f"{row['predicted']:.3f}", f"{row['measured']:.3f}", interval, f"{row['ratio']:.2f}")
        table.add_row(row["plan"], row["phase"], *shown)
    Console(width=110).print(table)
    distances = off(rows)
    for phase, distance in distances.items():
        Console(width=110).print(f"{phase}: {distance:.3f} off in the median over plans, bar {BAR}")
    if asked.out is not None:
        asked.out.write_text(json.dumps(rows, indent=1))
    return 0 if max(distances.values()) <= BAR else 1


if __name__ == "__main__":
    sys.exit(main())
