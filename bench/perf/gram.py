"""Cost of the token Gram statistic: ``python -m bench.perf.gram``.

Every expert runs on 16,384 tokens of m64 (64 experts) with one thread, in fresh processes. What is reported: the size of
the statistic and whether it is a memory map, fresh and recalled; peak RSS above the imports, for two depths; and CPU
seconds of the dense pass beside bare matrix products of the same shapes, in alternation within one process.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.perf.alone import run_alone

SEQUENCES, LENGTH = 32, 512
TOKENS = SEQUENCES * LENGTH
PASS_TOKENS = 2048
SIZE_BAR, DEPTH_SLACK = 300.0, 30.0
"""Megabytes of the statistic for each layer, and by which the peak may differ between 2 and 4 layers."""


def memory(folder: Path) -> dict[str, float]:
    """Measure the statistic on the whole model, then recall it; memory in units of 10^6 bytes."""
    import numpy as np

    from bench.calibration.calibrate import calibrate
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.perf.model import SIZES
    from bench.text.corpus import Corpus

    checkpoint = Checkpoint.open(folder)
    generator = np.random.default_rng(0)
    corpus = Corpus.of(generator.integers(SIZES["vocab_size"], size=(SEQUENCES, LENGTH)), "random ids")
    needs = frozenset({"token_gram"})
    calibrate(checkpoint, Corpus.of([[1, 2]]), needs)  # what is imported and set up on the way
    checkpoint.content  # noqa: B018 - hashing is not what is measured
    imports = _peak()
    seconds: list[float] = []
    peaks: list[float] = []
    with tempfile.TemporaryDirectory(dir=folder.parent) as cache:
        for _ in ("fresh", "recalled"):
            start = time.process_time()
            stats = calibrate(checkpoint, corpus, needs, sampled_tokens=TOKENS, cache=Path(cache))
            seconds.append(time.process_time() - start)
            peaks.append(_peak() - imports)
            values = [value for value in stats.values["token_gram"] if value is not None]
            mapped = float(all(isinstance(value, np.memmap) for value in values))
            if not mapped:
                break
        sizes = [path.stat().st_size / 1e6 for path in Path(cache).glob("*.npy")]
    return {
        "imports": imports,
        "peak": peaks[0],
        "recalled": peaks[-1],
        "mapped": mapped,
        "size": max(sizes),
        "seconds": seconds[0],
        "recall_seconds": seconds[-1],
    }


def dense(folder: Path, pairs: int) -> dict[str, float]:
    """Time one layer's dense pass with its Gram matrices beside bare products of the same shapes."""
    import torch
    import torch.nn.functional as F

    from bench.calibration.feed_forward import FeedForward
    from bench.calibration.layers.hidden import Batch, Block
    from bench.calibration.layers.layer_experts import LayerExperts
    from bench.calibration.layers.weights import WeightReader
    from bench.calibration.sums.disk_array import DiskArrays
    from bench.calibration.sums.layer_sums import LayerSums
    from bench.calibration.sums.places import ModelPlace, OneLayer, Samples
    from bench.checkpoint.checkpoint import Checkpoint
    from methods.framework.layer_plan import LayerPlan

    checkpoint = Checkpoint.open(folder)
    inventory, device = checkpoint.inventory, torch.device("cpu")
    layer = inventory.layers[0]
    reader = WeightReader(checkpoint, device, torch.float32)
    forward = FeedForward(inventory.router, reader, F.silu, 2048)
    input_TD = torch.randn(PASS_TOKENS, inventory.hidden, generator=torch.Generator().manual_seed(0))
    gate_up_XD, down_DF = torch.randn(512, inventory.hidden), torch.randn(inventory.hidden, 256)
    narrow_TF = torch.randn(PASS_TOKENS, 256)
    outputs_TED = torch.randn(PASS_TOKENS, layer.experts, inventory.hidden)

    def ours() -> None:
        samples, arrays = Samples.of(PASS_TOKENS, PASS_TOKENS, 2, 0), DiskArrays(None, named=False)
        model = ModelPlace(inventory.hidden, len(inventory.layers), device, None, samples, arrays)
        sums = LayerSums({"token_gram"}, OneLayer.of(model, 0, layer))
        block = Block(0, PASS_TOKENS, (Batch(0, 1, PASS_TOKENS),))
        sums.begin(block)
        forward(layer, input_TD, sums)
        sums.end()
        sums.finished(LayerExperts(reader, layer, LayerPlan()))

    def bare() -> None:
        for _ in range(layer.experts):
            F.linear(input_TD, gate_up_XD)
            F.linear(narrow_TF, down_DF)
        for some_TED in outputs_TED.split(256):
            torch.bmm(some_TED, some_TED.mT)

    found: dict[str, list[float]] = {"ours": [], "bare": []}
    with torch.inference_mode():
        for turn in range(pairs + 1):
            for name, function in (("ours", ours), ("bare", bare)):
                start = time.process_time()
                function()
                if turn:  # the first one warms up
                    found[name].append((time.process_time() - start) * 1000 / PASS_TOKENS)
    ratios = [a / b for a, b in zip(found["ours"], found["bare"], strict=True)]
    flops = 2 * layer.experts * inventory.hidden * (3 * 256 + layer.experts)
    return {
        "ours": statistics.median(found["ours"]),
        "bare": statistics.median(found["bare"]),
        "ratio": statistics.median(ratios),
        "ratio_low": min(ratios),
        "ratio_high": max(ratios),
        "gflops": flops * 1000 / statistics.median(found["ours"]) / 1e9,
    }


def _peak() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _job(kind: str, cache: Path, layers: int, pairs: int) -> dict[str, float]:
    """Run one measurement in a process of its own; this one stays small, because a child's peak RSS begins with its parent's."""
    arguments = ["--cache", str(cache), "--job", kind, "--layers", str(layers), "--pairs", str(pairs)]
    return run_alone("bench.perf.gram", arguments)


def rows(
    shallow: dict[str, float], deep: dict[str, float], speed: dict[str, float]
) -> list[tuple[str, float, str, str]]:
    """Return (quantity, value, unit, verdict) of everything that was measured.

    Args:
        shallow: values of the model with few layers, by name.
        deep: the same of the one with more layers.
        speed: seconds by name.
    """

    def verdict(met: bool) -> str:
        return "pass" if met else "FAIL"

    both = (shallow, deep)
    apart = abs(deep["peak"] - shallow["peak"])
    return [
        ("token_gram of one layer, 64 experts, 16,384 tokens", deep["size"], "MB", verdict(deep["size"] < SIZE_BAR)),
        ("is a memory map, fresh and recalled", deep["mapped"], "", verdict(all(job["mapped"] == 1 for job in both))),
        ("RSS after imports and set-up", deep["imports"], "MB", ""),
        ("peak RSS above that, 2 layers", shallow["peak"], "MB", ""),
        ("peak RSS above that, 4 layers", deep["peak"], "MB", verdict(apart < DEPTH_SLACK)),
        ("peak RSS above that, once recalled too", deep["recalled"], "MB", verdict(deep["recalled"] <= deep["peak"])),
        ("calibrate, 4 layers, 16,384 tokens", deep["seconds"], "s", ""),
        ("recall from the cache", deep["recall_seconds"], "s", ""),
        ("dense pass of one layer, 1,000 tokens", speed["ours"], "s", ""),
        ("bare products of the same shapes", speed["bare"], "s", ""),
        ("ratio", speed["ratio"], f"({speed['ratio_low']:.2f} to {speed['ratio_high']:.2f})", ""),
        ("dense pass", speed["gflops"], "GFLOP/s", ""),
    ]


def main() -> None:
    """Measure, print the table, and leave with status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.gram", description=__doc__)
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "moebench-perf", help="where m64 is"
    )
    parser.add_argument("--pairs", type=int, default=5, help="alternations of the dense pass and bare products")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    parser.add_argument("--job", choices=["build", "memory", "dense"], help=argparse.SUPPRESS)
    parser.add_argument("--layers", type=int, default=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        import torch

        from bench.perf.model import build_m64

        torch.set_num_threads(1)
        folder = build_m64(arguments.cache, arguments.layers)
        found: Any = {}
        if arguments.job != "build":
            found = memory(folder) if arguments.job == "memory" else dense(folder, arguments.pairs)
        print(json.dumps(found))
        return
    for layers in (2, 4):
        _job("build", arguments.cache, layers, 1)
    shallow, deep = (_job("memory", arguments.cache, layers, 1) for layers in (2, 4))
    found = rows(shallow, deep, _job("dense", arguments.cache, 2, arguments.pairs))
    table = Table(title="Token Gram on m64, one thread, CPU seconds")
    for column in ("quantity", "value", "unit", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for quantity, value, unit, result in found:
        table.add_row(quantity, f"{value:.3g}" if value < 100 else f"{value:.0f}", unit, result)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps([list(row) for row in found], indent=1) + "\n")
    sys.exit(any(row[3] == "FAIL" for row in found))


if __name__ == "__main__":
    main()
