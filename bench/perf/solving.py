"""Solving a table of 64 units by 16 options: the 20 best plans and the whole frontier, beside HiGHS for one plan.

    python -m bench.perf.solving [--seeds 5] [--out results.json]

Leaves with status 1 if the two together take a CPU second or more on any table.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.perf.worlds import WORLDS
from sweeps.solving.curve import frontier
from sweeps.solving.knapsack import best

UNITS, OPTIONS, COUNT = 64, 16, 20
BAR = 1.0
"""CPU seconds of the 20 best and the frontier together."""
SHARE = 0.4
"""Place of the budget between the smallest and the largest plan."""


def highs(damages: list[Any], sizes: list[Any], limit: int) -> float:
    """Return the least damage that HiGHS finds within ``limit``, to a relative gap of 1e-6.

    Args:
        damages: of each option of each unit.
        sizes: of the same options.
        limit: largest sum of sizes.
    """
    from scipy.optimize import Bounds, LinearConstraint, milp

    cost, weight = np.concatenate(damages), np.concatenate(sizes) / limit
    units = np.repeat(np.eye(len(damages)), [len(unit) for unit in damages], axis=1)
    constraints = [LinearConstraint(units, 1, 1), LinearConstraint(weight[None, :], -np.inf, 1)]
    options = {"mip_rel_gap": 1e-6}
    result = milp(cost, integrality=np.ones(len(cost)), bounds=Bounds(0, 1), constraints=constraints, options=options)
    return float(result.fun)


def _timed(function: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def measured(world: str, seed: int) -> dict[str, Any]:
    """Return seconds and findings of one table.

    Args:
        world: sort of table, a name of ``WORLDS``.
        seed: of its numbers.
    """
    damages, sizes = WORLDS[world](np.random.default_rng(seed), UNITS, OPTIONS)
    smallest, largest = (sum(int(pick(unit)) for unit in sizes) for pick in (np.min, np.max))
    limit = int(smallest + SHARE * (largest - smallest))
    ranking_s, ranking = _timed(lambda: best(damages, sizes, limit, COUNT))
    frontier_s, found = _timed(lambda: frontier(damages, sizes))
    highs_s, least = _timed(lambda: highs(damages, sizes, limit))
    ours = ranking.assignments[0].damage
    agree = ranking.gap == 0.0 and abs(ours - least) <= 1e-5 * abs(least)
    return {
        "world": world,
        "best": ranking_s,
        "frontier": frontier_s,
        "together": ranking_s + frontier_s,
        "highs": highs_s,
        "ratio": ranking_s / highs_s,
        "points": len(found.sizes),
        "slack": found.slack / largest,
        "agree": agree,
    }


def main() -> None:
    """Measure, print the table, and leave with status 1 if the bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.solving", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="tables of each sort")
    parser.add_argument("--out", type=Path, help="write the measurements as JSON")
    arguments = parser.parse_args()
    measured("experts", 0)  # imports and warms up
    every = [measured(world, seed) for world in WORLDS for seed in range(arguments.seeds)]
    table = Table(title=f"{UNITS} units x {OPTIONS} options, one thread, CPU seconds, median (largest)")
    for column in (
        "table",
        f"{COUNT} best",
        "frontier",
        "together",
        "HiGHS, one",
        "best / HiGHS",
        "points",
        "slack",
        "",
    ):
        table.add_column(column, justify="left" if column in ("table", "") else "right")
    failed = False
    for world in WORLDS:
        rows = [row for row in every if row["world"] == world]
        met = all(row["together"] < BAR and row["agree"] for row in rows)
        failed = failed or not met

        def shown(name: str, rows: list[dict[str, Any]] = rows) -> str:
            values = [row[name] for row in rows]
            return f"{statistics.median(values):.3g} ({max(values):.3g})"

        names = ("best", "frontier", "together", "highs", "ratio", "points", "slack")
        table.add_row(world, *(shown(name) for name in names), "pass" if met else "FAIL")
    Console(width=None if sys.stdout.isatty() else 150).print(table)
    if arguments.out:
        arguments.out.write_text(json.dumps(every, indent=1) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
