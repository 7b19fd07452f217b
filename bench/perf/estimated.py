"""Estimates beside measured runs: ``python -m bench.perf.estimated [--methods reap,gptq] [--depth 6] [--json FILE]``.

m64 is compressed as in ``bench.perf.layers``; predicted are the scratch disk, and the memory above that of a process that has
compressed a small model before.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.checkpoint.checkpoint import Checkpoint
from bench.perf.layers import LENGTH, SEQUENCES, run_job
from bench.perf.model import build_m64
from bench.running.estimate import PROCESS, estimate
from bench.settings.stage_settings import CalibrationConfig
from methods.framework.cost import cost_of
from methods.registry import method

METHODS = ("reap", "gptq")


def compared(folder: Path, cache: Path, name: str, depth: int) -> dict[str, Any]:
    """Return what was predicted for a method and what was measured, in bytes.

    Args:
        folder: of the model.
        cache: where models are kept.
        name: of the method, with its own settings.
        depth: decoder layers of the model.
    """
    chosen, settings = method(name), CalibrationConfig(sequences=SEQUENCES, length=LENGTH, moments="by_layer")
    told = estimate(chosen, Checkpoint.open(folder).inventory, settings, chosen.stages)
    found = run_job(cache, name, "by_layer", depth)
    return {
        "method": name,
        "memory": told.memory - PROCESS,
        "measured_memory": found["memory"],
        "scratch": told.scratch,
        "measured_scratch": found["scratch"],
        "seconds": found["seconds"],
    }


def main() -> None:
    """Compress, and print what was predicted and what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "moebench-perf", help="where m64 is"
    )
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    parser.add_argument("--depth", type=int, default=6, help="decoder layers")
    parser.add_argument("--json", type=Path, help="write the results here")
    asked = parser.parse_args()
    folder, rows = build_m64(asked.cache, asked.depth), []
    for name in asked.methods.split(","):
        rows.append(compared(folder, asked.cache, name, asked.depth))
        print(rows[-1], file=sys.stderr, flush=True)
    size = cost_of(Checkpoint.open(folder).inventory)
    what = (
        f"A random Qwen3-MoE of {asked.depth} layers with 64 experts ({size.parameters / 1e6:.0f} million parameters, "
        f"{size.bytes / 1e9:.2f} GB), {SEQUENCES} windows of {LENGTH} tokens, one thread of a processor: "
        "`python -m bench.perf.estimated`. Memory is what comes on top of a process that has compressed a small model before."
    )
    print(json.dumps({"what": what, "rows": rows}, indent=1))
    if asked.json:
        asked.json.write_text(json.dumps({"what": what, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
