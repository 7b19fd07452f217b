"""What measuring trials in stages saves, and what it costs: windows and CPU seconds against the best plan that is found.

    python -m bench.perf.staged_trials [--trials 60] [--seeds 3] [--sampler local] [--out results.json]

The same search runs without stages and with each pruner, for the same number of trials, on pocket-mixtral. There is no bar.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.perf.trials import searched
from sweeps.opening import open_resident
from sweeps.resident import Resident
from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig

WINDOWS = 32
MODES: dict[str, dict[str, Any] | None] = {
    "no stages": None,
    "wilcoxon, p 0.1": {"windows": [4, 8, 16], "pruner": "wilcoxon", "p": 0.1},
    "wilcoxon, p 0.3": {"windows": [4, 8, 16], "pruner": "wilcoxon", "p": 0.3},
    "median": {"windows": [4, 8, 16], "pruner": "median", "startup": 8},
}
"""Settings of ``stages``, by what they are called."""


def one(trials: int, seed: int, sampler: str, mode: str) -> SweepConfig:
    """Return the sweep of one mode.

    Args:
        trials: how many.
        seed: of the sampler and of the windows.
        sampler: that draws.
        mode: of ``MODES``.
    """
    windows = {"corpus": "pocket", "sequences": WINDOWS, "length": 128, "seed": 1 + seed}
    return searched(
        trials,
        name=f"stages-{seed}-{list(MODES).index(mode)}",
        sampler={"name": sampler, "seed": seed},
        objectives=[{"kind": "kl", "windows": windows}],
        stages=MODES[mode],
    )


def measured(config: SweepConfig, resident: Resident, store: Path) -> dict[str, float]:
    """Return the windows that a search measured, as a share of all, its CPU seconds, trials ended early, and its best value.

    Args:
        config: the sweep.
        resident: the model and its texts.
        store: folder of the store, in which no plan of it was measured yet.
    """
    start = time.process_time()
    result = run_sweep(config, store=store, resident=resident)
    seconds = time.process_time() - start
    rows = [row for row in result.rows if row.state in ("complete", "pruned")]
    read = sum(WINDOWS if row.windows is None else row.windows for row in rows)
    return {
        "windows": read / (WINDOWS * len(rows)),
        "seconds": seconds,
        "ended": sum(row.state == "pruned" for row in rows),
        "best": min(row.scores["kl"] for row in rows if row.state == "complete"),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--sampler", default="local")
    parser.add_argument("--out", type=Path, help="JSON file of the results")
    asked = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {mode: [] for mode in MODES}
    for seed in range(asked.seeds):
        with tempfile.TemporaryDirectory() as folder:
            resident = open_resident(one(asked.trials, seed, asked.sampler, "no stages"), Path(folder))
            for mode, own in found.items():
                config = one(asked.trials, seed, asked.sampler, mode)
                own.append(measured(config, resident, Path(folder) / config.name))
    table = Table("stages", "windows measured", "CPU seconds", "ended early", "best value over that without", "worst")
    whole = found["no stages"]
    for mode, own in found.items():
        share = statistics.mean(run["windows"] for run in own)
        seconds = statistics.mean(run["seconds"] / base["seconds"] for run, base in zip(own, whole, strict=True))
        best = [run["best"] / base["best"] for run, base in zip(own, whole, strict=True)]
        ended = statistics.mean(run["ended"] for run in own) / asked.trials
        table.add_row(
            mode, f"{share:.0%}", f"{seconds:.2f}", f"{ended:.0%}", f"{statistics.median(best):.3f}", f"{max(best):.3f}"
        )
    Console(width=110).print(table)
    if asked.out is not None:
        asked.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
