"""Room that compressing takes, at two depths: ``python -m bench.perf.layers``.

m64 with 2 and with 6 decoder layers is compressed by methods that write from Gram matrices, in fresh processes with one thread:
with matrices that go with their layer, and, for comparison, with those of all layers kept. Reported are the peak of files beside
model and result, in moments of one layer, and peak RSS above what a first, tiny job leaves, in layers of weights.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from bench.perf.alone import run_alone

if TYPE_CHECKING:
    from bench.checkpoint.checkpoint import Checkpoint

DEPTHS = (2, 6)
SEQUENCES, LENGTH = 8, 256
SCRATCH_BAR, MEMORY_BAR, SLACK = 1.2, 2.0, 0.3
"""Moments of a layer on disk; layers of weights in memory beside activations; layers by which that may differ between depths."""
METHODS = ("gptq", "awq", "sparsegpt", "whitened_svd")
_STREAMS = 8
"""Copies of the hidden states that count as activations: those of the pass, and inputs and outputs of one expert."""


class _Watch:
    """The largest number of bytes that files without a name, and files in some folder, take while it looks."""

    def __init__(self, folder: Path) -> None:
        self._folder, self.peak = folder, 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(0.005):
            self.peak = max(self.peak, sum(self._held().values()))

    def _held(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for path in (*Path("/proc/self/fd").iterdir(), *self._folder.rglob("*")):
            try:
                stat, place = path.stat(), path.resolve() if path.is_symlink() else path
            except OSError:
                continue  # closed meanwhile
            unnamed = not stat.st_nlink and not str(place).startswith("/dev")
            if unnamed or (path.is_file() and not path.is_symlink()):
                found[stat.st_ino] = stat.st_size
        return found


def job(folder: Path, method: str, moments: str) -> dict[str, float]:
    """Compress the model in ``folder`` and return the peaks, in bytes, with CPU seconds.

    Args:
        folder: of m64.
        method: name of the method, with its own settings.
        moments: ``by_layer`` or ``kept``.
    """
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.perf.model import SIZES, build_m64

    checkpoint = Checkpoint.open(folder)
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        text = Path(place) / "ids.json"
        text.write_text(
            json.dumps([[(7 * i * (w + 3)) % SIZES["vocab_size"] for i in range(LENGTH)] for w in range(SEQUENCES)])
        )
        settings = {"corpus": str(text), "sequences": SEQUENCES, "length": LENGTH, "moments": moments, "device": "cpu"}
        small = build_m64(folder.parent, 1)
        _compress(Checkpoint.open(small), method, settings, Path(place) / "first")
        checkpoint.content  # noqa: B018 - hashing is not what is measured
        _forget_peak()
        before, start = _resident(), time.process_time()
        store = Path(place) / "store"
        with _Watch(store / "cache") as watch:
            _compress(checkpoint, method, settings, store)
        return {
            "scratch": float(watch.peak),
            "memory": float(_peak() - before),
            "seconds": time.process_time() - start,
        }


def _compress(checkpoint: Checkpoint, name: str, settings: dict[str, Any], place: Path) -> None:
    from bench.running.calibrator import Calibrator
    from bench.running.stages import write_checkpoint
    from bench.settings.stage_settings import CalibrationConfig
    from bench.store.store import Store
    from methods.registry import method_class

    method, store = method_class(name)(), Store(place)
    calibrator = Calibrator(checkpoint, CalibrationConfig(**settings), store, method.measured)
    stats = calibrator.stats_for(method)
    plan = method.plan(checkpoint.inventory, stats)
    write_checkpoint(checkpoint, plan, store, {}, calibrator.moments_for(plan, method, stats))


def _forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def rows(found: dict[tuple[str, str, int], dict[str, float]]) -> list[tuple[str, str, float, float, float, float, str]]:
    """Return (method, moments, scratch at both depths, memory at both depths, verdict) for each job at both depths.

    Args:
        found: measurements by method, way and depth.
    """
    from bench.perf.model import SIZES

    experts, hidden, width = SIZES["num_experts"], SIZES["hidden_size"], SIZES["moe_intermediate_size"]
    moments = 4 * experts * (hidden**2 + width**2)
    layer = 4 * experts * 3 * hidden * width
    active = _STREAMS * 4 * SEQUENCES * LENGTH * hidden
    made = []
    for method, way in dict.fromkeys((method, way) for method, way, _ in found):
        shallow, deep = (found[method, way, depth] for depth in DEPTHS)
        files, deep_files = (one["scratch"] / moments for one in (shallow, deep))
        memory, deep_memory = ((one["memory"] - active) / layer for one in (shallow, deep))
        constant = max(files, deep_files) <= SCRATCH_BAR and deep_memory - memory <= SLACK
        verdict = "pass" if constant and max(memory, deep_memory) <= MEMORY_BAR else "FAIL"
        made.append((method, way, files, deep_files, memory, deep_memory, verdict if way == "by_layer" else ""))
    return made


def main() -> None:
    """Measure, print the table, and leave with status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.layers", description=__doc__)
    place = Path(tempfile.gettempdir()) / "moebench-perf"
    parser.add_argument("--cache", type=Path, default=place, help="where m64 is")
    parser.add_argument("--methods", default=",".join(METHODS), help="names, separated by commas")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        import torch

        from bench.perf.model import build_m64

        torch.set_num_threads(1)
        method, way, depth = arguments.job
        print(json.dumps(job(build_m64(arguments.cache, int(depth)), method, way) if method else {}))
        return
    ways = [("gptq", "kept"), *((method, "by_layer") for method in arguments.methods.split(","))]
    for depth in (1, *DEPTHS):
        run_job(arguments.cache, "", "", depth)  # builds the model, whose memory is not that of a job
    found = {(*way, depth): run_job(arguments.cache, *way, depth) for way in ways for depth in DEPTHS}
    table = Table(title=f"Room for compressing m64 at {DEPTHS[0]} and {DEPTHS[1]} layers")
    for column in ("method", "moments", "files", "files, deep", "memory", "memory, deep", ""):
        table.add_column(column, justify="right" if column.startswith(("files", "mem")) else "left")
    lines = rows(found)
    for line in lines:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else value for value in line))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps([list(line) for line in lines], indent=1) + "\n")
    sys.exit(any(line[-1] == "FAIL" for line in lines))


def run_job(cache: Path, method: str, way: str, depth: int) -> dict[str, float]:
    """Return what a job in a process of its own measured.

    Args:
        cache: where m64 is.
        method: as for ``job``; empty only builds the model.
        way: ``by_layer`` or ``kept``.
        depth: decoder layers.
    """
    return run_alone("bench.perf.layers", ["--cache", str(cache), "--job", method, way, str(depth)])


if __name__ == "__main__":
    main()
