"""What each method needs on large models, from configs alone, and a measured run beside what was predicted for it.

    python -m bench.perf.scale [--page docs/scale.md] [--measured measured.json] [--planning planning.json ...]

The page says what was measured and what was not. ``bench.perf.estimated`` makes the measured run, ``bench.perf.planning`` the
times of planning.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.families.family import family_named
from bench.perf.planning import SIZES
from bench.running.estimate import DISK, FACTORISING, UTILISATION, Device, device_named, estimate
from bench.settings.stage_settings import CalibrationConfig
from methods.framework.cost import cost_of
from methods.framework.inventory import Inventory
from methods.registry import method, names

_QWEN = SIZES["48x128"].config
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "Mixtral-8x7B": (
        "mixtral",
        {
            "num_hidden_layers": 32,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "vocab_size": 32000,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "model_type": "mixtral",
        },
    ),
    "Qwen3-30B-A3B": ("qwen3_moe", _QWEN),
    "Qwen3-235B-A22B": (
        "qwen3_moe",
        {
            **_QWEN,
            "num_hidden_layers": 94,
            "hidden_size": 4096,
            "moe_intermediate_size": 1536,
            "intermediate_size": 12288,
            "num_attention_heads": 64,
        },
    ),
}
"""Shapes of published models, as their config files state them."""


def model_named(name: str) -> Inventory:
    """Return what a checkpoint of one of ``MODELS`` holds."""
    family, config = MODELS[name]
    return family_named(family).inventory(config)


def needs_table(inventory: Inventory, device: Device) -> list[str]:
    """Return the lines of a table: what each method needs on this model."""
    lines = ["| method | tokens | FLOPs | memory, GB | scratch, GB | hours |", "|---|--:|--:|--:|--:|--:|"]
    settings = CalibrationConfig()
    for name in names():
        chosen = method(name)
        if reason := chosen.refuse(inventory):
            lines.append(f"| {name} | does not apply: {reason} | | | | |")
            continue
        one = estimate(chosen, inventory, settings, chosen.stages)
        sizes = f"{one.memory / 1e9:.1f} | {one.scratch / 1e9:.1f}"
        flops, hours = f"{one.flops + one.factorised:.1e}", f"{one.hours(device):.2f}{' +' * one.uncounted}"
        lines.append(f"| {name} | {one.tokens:,} | {flops} | {sizes} | {hours} |")
    return lines


def planning_table(found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: CPU seconds and bytes of each method's plan at each size that was measured.

    Args:
        found: results of ``bench.perf.planning``.
    """
    sizes = [one["size"] for one in found]
    rows = {(one["size"], row["method"]): row for one in found for row in one["rows"]}
    heads = "".join(f" {size}, s | {size}, kB |" for size in sizes)
    lines = [f"| method |{heads}", "|---|" + "--:|--:|" * len(sizes)]
    for name in names():
        cells = []
        for size in sizes:
            row = rows.get((size, name))
            if row is None:
                cells += ["not measured", ""]
            elif "refused" in row:
                cells += ["refuses", ""]
            else:
                cells += [f"{row['seconds']:.2f}", f"{row['bytes'] / 1e3:,.0f}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    told = {row["refused"] for row in rows.values() if "refused" in row}
    return [*lines, *(f"\nRefused: {reason}." for reason in sorted(told))]


def measured_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of a table: predicted and measured sizes of runs.

    Args:
        rows: results of ``bench.perf.estimated``.
    """
    lines = [
        "| method | memory predicted, MB | measured | scratch predicted, MB | measured | CPU seconds |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [f"{row[key] / 1e6:,.0f}" for key in ("memory", "measured_memory", "scratch", "measured_scratch")]
        lines.append(f"| {row['method']} | " + " | ".join(cells) + f" | {row['seconds']:.0f} |")
    return lines


def page(measured: dict[str, Any] | None, planning: Sequence[dict[str, Any]]) -> str:
    """Return the page.

    Args:
        measured: what ``bench.perf.estimated`` wrote; None leaves the comparison out.
        planning: what ``bench.perf.planning`` wrote, one for a size.
    """
    device, settings = device_named("h100"), CalibrationConfig()
    parts = [
        "# Scale",
        "What large models need, before a run begins: `moebench run --estimate` tells it for one run, this page for every "
        "method with its own settings. `python -m bench.perf.scale` writes the page from the shapes in three configs. "
        f"**Nothing of it was run on an {device.name}.**",
        f"Assumed: {settings.sequences} windows of {settings.length} tokens, {settings.sampled_tokens} sampled; "
        f"{UTILISATION:.0%} of {device.flops / 1e12:.0f} TFLOP/s (bfloat16) for passes over the model, {FACTORISING:.0%} of "
        f"{device.flops_float32 / 1e12:.0f} TFLOP/s (float32) for factorisations; weights are read twice and written once "
        f"at {DISK / 1e9:.0f} GB/s. Memory is what measuring and writing hold at once; evaluation, which loads the model, "
        "needs more. Scratch disk is gone when the checkpoint is written. +: the method also runs the model on candidates or "
        "fits in steps, which is not counted.",
    ]
    for name in MODELS:
        inventory = model_named(name)
        size = cost_of(inventory)
        billions = [f"{number / 1e9:.1f}" for number in (size.parameters, size.active_parameters)]
        told = f"{billions[0]} billion parameters, {billions[1]} of them active, {size.bytes / 1e9:.0f} GB."
        parts += [f"## {name}", told, "\n".join(needs_table(inventory, device))]
    if measured is not None:
        parts += ["## Predicted and measured", measured["what"], "\n".join(measured_table(measured["rows"]))]
    if planning:
        told = (
            "CPU seconds of one thread that planning takes once the statistics are there, and the size of the plan's file, at "
            "the shapes of Qwen3-30B-A3B (48x128) and Kimi-K2 (61x384), 4,096 sampled tokens, on statistics that are drawn: "
            "`python -m bench.perf.planning --size SIZE --json FILE`. For most rows the processor was shared with "
            "other work, which makes CPU seconds longer. Which channels stay takes a bit each."
        )
        parts += ["## Planning", told, "\n".join(planning_table(planning))]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write the page, or print it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="file to write; else it is printed")
    parser.add_argument("--measured", type=Path, help="results of bench.perf.estimated")
    parser.add_argument("--planning", type=Path, nargs="*", default=[], help="results of bench.perf.planning")
    asked = parser.parse_args()
    measured = json.loads(asked.measured.read_text()) if asked.measured else None
    text = page(measured, [json.loads(path.read_text()) for path in asked.planning])
    if asked.page:
        asked.page.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
