"""The report of many records: CPU seconds, memory and size of the page, in a process of its own.

    python -m bench.perf.many_records [--records 10000] [--figures] [--keep FOLDER]

Records are made up from a seed: every method of the registry on several models, at shares and seeds, with ten tasks, paired
intervals and a timing. Leaves with status 1 if a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.records.record import (
    CorpusInfo,
    CostInfo,
    Environment,
    Interval,
    ModelInfo,
    Paired,
    RatioInfo,
    Record,
    Score,
    Timing,
    write_record,
)
from methods.registry import method_class, names

BARS = {"CPU seconds": 60.0, "peak memory, GiB": 1.0, "page, MB": 15.0}
"""At 10,000 records."""
TASKS = tuple(f"task_{place}" for place in range(10))
ITEMS = 200
SHARES = tuple(round(float(share), 3) for share in np.linspace(0.95, 0.2, 16))
MODELS = 20


def records(count: int, seed: int = 0) -> Iterator[Record]:
    """Yield ``count`` made-up records: of each model its base, then methods by shares.

    Args:
        count: how many.
        seed: of all numbers.
    """
    rng = np.random.default_rng(seed)
    rules = [name for name in names() if "keep" in method_class(name).model_fields]
    settings = [(rule, share, one) for one in range(100) for share in SHARES for rule in rules]
    per_model = -(-count // MODELS)
    place = 0
    for model in range(MODELS):
        base = tuple(_score(task, float(rng.uniform(0.5, 0.95)), None) for task in TASKS)
        for line in range(min(per_model, count - place)):
            yield _record(rng, place, f"model-{model}", base, None if line == 0 else settings[line - 1])
            place += 1


def _record(
    rng: np.random.Generator, place: int, model: str, base: tuple[Score, ...], setting: tuple[str, float, int] | None
) -> Record:
    share = setting[1] if setting else 1.0
    routed = round(8e9 * share)
    lost = (1 - share) ** 2
    scores = base if setting is None else tuple(_changed(rng, score, lost) for score in base)
    return Record.model_validate(
        {
            "schema": 1,
            "id": f"{place:016x}",
            "group": "made up",
            "status": "complete",
            "created": "2026-01-02T03:04:05Z",
            "model": ModelInfo(name=model, family="mixtral", content=f"content-{model}"),
            "corpus": CorpusInfo(name="text", digest="c0ffee", tokens=4096, sequences=8, propagation="one_shot"),
            "method": setting[0] if setting else None,
            "title": method_class(setting[0]).title if setting else "Uncompressed",
            "knobs": {"keep": share, "text": setting[2], "scope": "layer"} if setting else {},
            "stages": ("experts",) if setting else (),
            "plan": f"{place:064x}",
            "cost": CostInfo(
                experts=round(512 * share),
                channels=round(512 * 2048 * share),
                routed_parameters=routed,
                parameters=2 * 10**9 + routed,
                active_parameters=3 * 10**9,
                bytes=2 * (2 * 10**9 + routed),
                flops=12 * 10**12,
            ),
            "ratios": RatioInfo(
                count=1 - share, expert=1 - share, total=0.8 * (1 - share), bytes=0.8 * (1 - share), channels=1 - share
            ),
            "realisation": "checkpoint written, loaded in transformers",
            "scores": scores,
            "timing": _timing(rng, share),
            "seconds": {"calibrate": 1.5, "plan": 0.25},
            "seeds": {"calibration": 0},
            "environment": Environment(
                commit="abcdef0", dirty=False, versions={"torch": "0.0"}, device="made up", threads=1
            ),
        }
    )


def _score(task: str, value: float, pair: Paired | None) -> Score:
    return Score(
        task=task,
        metric="acc",
        value=round(value * ITEMS) / ITEMS,
        stderr=(value * (1 - value) / ITEMS) ** 0.5,
        n=ITEMS,
        higher_is_better=True,
        version="1.0",
        digest=f"items-of-{task}",
        paired=pair,
    )


def _changed(rng: np.random.Generator, score: Score, lost: float) -> Score:
    change = -float(rng.uniform(0, 0.5)) * lost
    half = float(rng.uniform(0.02, 0.06))
    pair = Paired(
        difference=change,
        low=change - half,
        high=change + half,
        stderr=half / 2,
        p=float(rng.uniform()),
        test="mcnemar",
        interval="score",
    )
    return _score(score.task, max(0.01, score.value + change), pair)


def _timing(rng: np.random.Generator, share: float) -> Timing:
    ratio = 1 + 0.3 * (1 - share) + float(rng.normal(0, 0.02))

    def around(middle: float) -> Interval:
        return Interval(median=middle, low=0.98 * middle, high=1.02 * middle, n=5)

    return Timing(
        prefill=around(4000 * ratio),
        decode=around(150 * ratio),
        prefill_ratio=around(ratio),
        decode_ratio=around(ratio),
        weights_bytes=10**9,
        peak_bytes=3 * 10**9,
        protocol={"batch": 4, "prompt": 128, "generated": 32, "repeats": 5, "engine": "made up"},
    )


_JOB = """
import json, resource, sys, time
from pathlib import Path
from analysis.report import report

start = time.process_time()
made = report(Path(sys.argv[1]), Path(sys.argv[2]), figures=sys.argv[3] == "figures")
used = time.process_time() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps({"CPU seconds": used, "peak memory, GiB": peak, "page, MB": made.page.stat().st_size / 1e6}))
"""


def measured(folder: Path, out: Path, figures: bool) -> dict[str, float]:
    """Return seconds, memory and size of a report in a process of its own.

    Args:
        folder: of records.
        out: where the report goes.
        figures: whether figures are drawn too.
    """
    command = [sys.executable, "-c", _JOB, str(folder), str(out), "figures" if figures else "none"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Make records, measure, print the table, and leave with status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.many_records", description=__doc__)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--figures", action="store_true", help="draw figures, too")
    parser.add_argument("--keep", type=Path, help="folder for records and report; without it they are removed")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as passing:
        root = arguments.keep or Path(passing)
        folder = root / f"records-{arguments.records}"
        if not folder.is_dir():
            folder.mkdir(parents=True)
            for record in records(arguments.records):
                write_record(record, folder)
        found = measured(folder, root / f"report-{arguments.records}", arguments.figures)
    table = Table(title=f"The report of {arguments.records:,} records")
    for column in ("", "measured", "bar"):
        table.add_column(column, justify="right" if column else "left")
    for name, bar in BARS.items():
        table.add_row(name, f"{found[name]:.2f}", f"{bar:g}")
    Console().print(table)
    sys.exit(any(found[name] > bar for name, bar in BARS.items()))


if __name__ == "__main__":
    main()
