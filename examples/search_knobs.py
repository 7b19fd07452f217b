"""Search the knobs of a method under a size budget: which criterion, and how half of the experts are spread over the depth.

    python examples/search_knobs.py
    python examples/search_knobs.py --trials 40 --store runs

The same as a file, for several processes and for going on later: ``moebench sweep sweeps/presets/demo.yaml``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sweeps.study import run_sweep
from sweeps.sweep_config import SweepConfig


def main() -> None:
    """Run the study, or go on with it, and show the best trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", nargs="?", default="pocket-mixtral", help="hub id, folder, or name of a pocket model")
    parser.add_argument("--trials", type=int, default=6, help="trials that are measured")
    parser.add_argument("--store", type=Path, default=Path("runs"), help="folder that the study lies in")
    given = parser.parse_args()

    config = SweepConfig.model_validate(
        {
            "name": "example",
            "model": given.model,
            "method": "criterion",
            "space": {"b": "auto", "alpha": "auto", "keep": {"knots": 3, "low": 0.25, "high": 0.9}},
            "budget": {"of": "experts", "keep": 0.5},
            "calibration": {"corpus": "pocket", "sequences": 16, "length": 128},
            "objectives": [{"kind": "nll", "windows": {"corpus": "pocket", "sequences": 4, "length": 128, "seed": 1}}],
            "trials": given.trials,
        }
    )
    result = run_sweep(
        config, store=given.store, progress=lambda row: print(row.number, row.state, row.scores, row.knobs)
    )
    best = result.front[0]
    print(f"best of {result.count('complete')}: trial {best.number}, {best.scores}, {best.knobs}")
    print(f"plans, trials.csv and the study: {result.folder}")


if __name__ == "__main__":
    main()
