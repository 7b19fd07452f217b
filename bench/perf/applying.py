"""What computing experts costs, in plain forward passes: ``python -m bench.perf.applying``.

w64 (2 decoder layers of 64 experts, hidden size 1024, width 512) is run on 8,192 tokens by transformers, and compressed by
methods that compute what they write, from Gram matrices of the same tokens. Everything runs in fresh processes with one thread;
reported are CPU seconds of measuring and of writing over those of the forward pass.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.perf.alone import run_alone

SEQUENCES, LENGTH = 16, 512
BARS = {"gptq": 3.0, "awq": 3.0, "whitened_svd": 4.0, "sparsegpt": 4.0}
"""Most forward passes that writing may cost, by method."""
PLAIN = "plain"


def _ids() -> list[list[int]]:
    from bench.perf.model import WIDE

    return [[(7 * i * (w + 3) + i // 5) % WIDE["vocab_size"] for i in range(LENGTH)] for w in range(SEQUENCES)]


def plain(folder: Path) -> dict[str, float]:
    """Return CPU seconds of the forward pass, one sequence at a time."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, experts_implementation="eager").eval()
    rows = [torch.tensor([row]) for row in _ids()]
    with torch.inference_mode():
        model(rows[0], use_cache=False)
        start = time.process_time()
        for row in rows:
            model(row, use_cache=False)
    return {"forward": time.process_time() - start}


def compressed(folder: Path, name: str) -> dict[str, float]:
    """Return CPU seconds of measuring and of writing.

    Args:
        folder: of w64.
        name: of a method, which has its own settings.
    """
    from bench.applying.apply import apply
    from bench.checkpoint.checkpoint import Checkpoint
    from bench.running.calibrator import Calibrator
    from bench.settings.stage_settings import CalibrationConfig
    from bench.store.store import Store
    from methods.registry import method_class

    checkpoint, method = Checkpoint.open(folder), method_class(name)()
    checkpoint.content  # noqa: B018 - hashing is not what is measured
    with tempfile.TemporaryDirectory(dir=folder.parent) as place:
        text = Path(place) / "ids.json"
        text.write_text(json.dumps(_ids()))
        settings = CalibrationConfig(corpus=str(text), sequences=SEQUENCES, length=LENGTH, moments="kept", device="cpu")
        calibrator = Calibrator(checkpoint, settings, Store(Path(place) / "store"), method.measured)
        start = time.process_time()
        stats = calibrator.stats_for(method)
        measured = time.process_time()
        plan = method.plan(checkpoint.inventory, stats)
        apply(checkpoint, plan, Path(place) / "out", moments=stats)
        return {"measure": measured - start, "write": time.process_time() - measured}


def _run(cache: Path, kind: str) -> dict[str, float]:
    return run_alone("bench.perf.applying", ["--cache", str(cache), "--job", kind])


def main() -> None:
    """Measure, print the table, and leave with status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.applying", description=__doc__)
    place = Path(tempfile.gettempdir()) / "moebench-perf"
    parser.add_argument("--cache", type=Path, default=place, help="where w64 is")
    parser.add_argument("--methods", default=",".join(BARS), help="names, separated by commas")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        import torch

        from bench.perf.model import build_w64

        torch.set_num_threads(1)
        folder = build_w64(arguments.cache)
        print(json.dumps(plain(folder) if arguments.job == PLAIN else compressed(folder, arguments.job)))
        return
    forward = _run(arguments.cache, PLAIN)["forward"]
    table = Table(title=f"CPU seconds over those of a forward pass ({forward:.1f} s) of {SEQUENCES * LENGTH} tokens")
    for column in ("method", "measuring", "writing", "at most", ""):
        table.add_column(column, justify="left" if column in ("method", "") else "right")
    found: dict[str, dict[str, float]] = {}
    for name in arguments.methods.split(","):
        found[name] = {phase: seconds / forward for phase, seconds in _run(arguments.cache, name).items()}
        bar = BARS.get(name)
        verdict = "" if bar is None else "pass" if found[name]["write"] <= bar else "FAIL"
        shown = "" if bar is None else f"{bar:g}"
        table.add_row(name, f"{found[name]['measure']:.2f}", f"{found[name]['write']:.2f}", shown, verdict)
    Console(width=None if sys.stdout.isatty() else 110).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps({"forward": forward, **found}, indent=1) + "\n")
    sys.exit(any(one["write"] > BARS.get(name, float("inf")) for name, one in found.items()))


if __name__ == "__main__":
    main()
