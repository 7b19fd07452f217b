"""What a sweep costs beside its evaluations: cost of a trial, of going on, and of drawing in a long study.

    python -m bench.perf.trials [--trials 100] [--long 10000] [--sampler local] [--sampler tpe] [--out results.json]

Leaves with status 1 where a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.pocket import pocket_path
from sweeps.meter import Meter
from sweeps.opening import open_resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig, parse_sweep

COST_BAR = 1.1
"""CPU seconds of a trial over those of its evaluation."""
RESUME_BAR = 3.0
"""CPU seconds of starting a study that is finished."""
DRAW_BAR = 0.1
"""CPU seconds of drawing over those of the evaluations, in a long study."""


def searched(trials: int, **changes: Any) -> SweepConfig:
    """Return a search of experts per layer on pocket-mixtral.

    Args:
        trials: how many.
        changes: of the sweep's settings.
    """
    windows = {"corpus": "pocket", "sequences": 32, "length": 128, "seed": 1}
    settings: dict[str, Any] = {
        "name": "perf",
        "model": str(pocket_path("pocket-mixtral")),
        "method": "reap",
        "space": {"keep": {"by": "layer", "low": 0.25}},
        "budget": {"of": "bytes", "keep": 0.5},
        "calibration": {"corpus": "pocket", "sequences": 32, "length": 128},
        "objectives": [{"kind": "kl", "windows": windows}],
        "starts": {"table": False},
        "trials": trials,
    }
    return parse_sweep({**settings, **changes})


class _Clock:
    """Adds up the CPU seconds of evaluations: of forward passes and losses, without putting a plan on the model."""

    def __init__(self) -> None:
        self.seconds, self.count = 0.0, 0

    def install(self) -> None:
        """Watch every objective that a meter asks."""
        from sweeps.objectives.kl import Kl

        original = Kl.by_window

        def by_window(objective: Kl, resident: Any) -> Any:
            measured = original(objective, resident)

            def timed(*rest: Any) -> Any:
                start = time.process_time()
                found = measured(*rest)
                self.seconds += time.process_time() - start
                self.count += 1
                return found

            return timed

        Kl.by_window = by_window  # type: ignore[method-assign, assignment]  # to watch it


def cost_of_a_trial(trials: int, clock: _Clock, store: Path) -> dict[str, float]:
    """Return CPU seconds of trials, those of their evaluations, and of starting the finished study again.

    Args:
        trials: how many.
        clock: that watches the evaluations.
        store: folder of the store.
    """
    config = searched(trials)
    resident = open_resident(config, store)
    run_sweep(searched(2, name="warm"), store=store, resident=resident)  # imports, and the base's states
    clock.seconds, clock.count = 0.0, 0
    start = time.process_time()
    run_sweep(config, store=store, resident=resident)
    spent, evaluated = time.process_time() - start, clock.seconds
    start = time.process_time()
    run_sweep(config, store=store)
    return {
        "trials": spent,
        "evaluations": evaluated,
        "evaluated": clock.count,
        "ratio": spent / evaluated,
        "again": time.process_time() - start,
    }


def cost_of_drawing(trials: int, sampler: str, evaluation: float, store: Path) -> dict[str, float]:
    """Return CPU seconds of a long study whose evaluations are skipped, beside what these would take.

    Args:
        trials: of the study.
        sampler: that draws.
        evaluation: CPU seconds of one.
        store: folder of the store.
    """
    config = searched(trials, name=f"long-{sampler}", sampler={"name": sampler})
    resident = open_resident(config, store)
    original = Meter._scores
    Meter._scores = lambda self, plan, *rest: {"kl": int(plan.digest[:8], 16) / 2**32}  # type: ignore[method-assign]  # skips them
    start = time.process_time()
    try:
        run_sweep(config, store=store, resident=resident)
    finally:
        Meter._scores = original  # type: ignore[method-assign]
    spent = time.process_time() - start
    return {"drawing": spent, "evaluations": trials * evaluation, "share": spent / (trials * evaluation)}


def main() -> int:
    """Measure, print, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--long", type=int, default=10_000, help="trials of the long study; 0: none")
    parser.add_argument("--sampler", action="append", help="of a long study; may be given again (local and tpe)")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    asked = parser.parse_args()
    clock = _Clock()
    clock.install()
    with tempfile.TemporaryDirectory() as folder:
        short = cost_of_a_trial(asked.trials, clock, Path(folder))
        one = short["evaluations"] / short["evaluated"]
        samplers = (asked.sampler or ["local", "tpe"]) if asked.long else []
        long = {sampler: cost_of_drawing(asked.long, sampler, one, Path(folder)) for sampler in samplers}
    table = Table("what", "measured", "bar")
    table.add_row("a trial over its evaluation", f"{short['ratio']:.3f}", f"{COST_BAR}")
    table.add_row("an evaluation, CPU s", f"{one:.4f}", "")
    table.add_row("starting a finished study, CPU s", f"{short['again']:.2f}", f"{RESUME_BAR}")
    met = short["ratio"] <= COST_BAR and short["again"] <= RESUME_BAR
    for sampler, own in long.items():
        table.add_row(
            f"{asked.long} trials by {sampler}: drawing over evaluating", f"{own['share']:.3f}", f"{DRAW_BAR}"
        )
        met = met and own["share"] <= DRAW_BAR
    Console(width=110).print(table)
    if asked.out is not None:
        asked.out.write_text(json.dumps({"short": short, "long": long}, indent=1))
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
