"""Cost of calibration beside a plain transformers forward: ``python -m bench.perf.calibration``.

Each measurement is a fresh process with one thread; the two sides alternate; times are CPU seconds of the process, which
neighbours on the machine disturb least. The protocol, and what each bar means, is in ``bench/perf/README.md``.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.perf.alone import run_alone
from bench.store.atomic import write_atomically

SHORT, LONG, LENGTH = 8, 32, 512
SLOPE_BAR, SECONDS_BAR, MEMORY_BAR, PARITY_BAR = 1.0, 6.0, 0.35, 1e-5
DEPTH_SLACK = 0.03
"""GiB by which the peak may differ between 8 and 16 layers: headers and names of twice as many tensors are held."""

Measured = dict[str, list[dict[str, float]]]


def measure(cache: Path, pairs: int) -> Measured:
    """Return all measurements by name, the two sides in alternation."""
    rows: list[tuple[str, tuple[str, ...]]] = []
    for _ in range(pairs):
        for sequences in (SHORT, LONG):
            for kind in ("plain", "streamed"):
                rows.append((f"{kind} {sequences}", (kind, "--sequences", str(sequences))))
        rows.append(("streamed 16 layers", ("streamed", "--layers", "16")))
    results: Measured = {}
    with Progress(console=Console(stderr=True), transient=True) as progress, tempfile.TemporaryDirectory() as memo:
        task = progress.add_task("build m64", total=len(rows) + 3)
        for layers in ("8", "16"):
            _job(cache, memo, "build", "--layers", layers)
            progress.advance(task)
        progress.update(task, description="parity")
        results["parity"] = [_job(cache, memo, "parity")]
        progress.advance(task)
        for name, arguments in rows:
            progress.update(task, description=name)
            results.setdefault(name, []).append(_job(cache, memo, *arguments))
            progress.advance(task)
    return results


def _job(cache: Path, memo: str, *arguments: str) -> dict[str, float]:
    """Run one process of ``bench.perf.job`` and return what it printed."""
    with tempfile.TemporaryDirectory(dir=memo) as cold:
        # A fresh cache folder makes every job compute the checkpoint's digest anew.
        variables = {"XDG_CACHE_HOME": cold, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        return run_alone("bench.perf.job", [*arguments, "--cache", str(cache)], variables)


def summary(results: Measured) -> list[dict[str, Any]]:
    """Return the rows of the table: quantity, values of all pairs, bar and whether it is met."""
    tokens = (LONG - SHORT) * LENGTH

    def slopes(kind: str, phase: str) -> list[float]:
        short, long = results[f"{kind} {SHORT}"], results[f"{kind} {LONG}"]
        return [1e6 * (b[phase] - a[phase]) / tokens for a, b in zip(short, long, strict=True)]

    def values(name: str, key: str) -> list[float]:
        return [row[key] for row in results[name]]

    plain, ours = slopes("plain", "forward"), slopes("streamed", "calibrate")
    ratio = [b / a for a, b in zip(plain, ours, strict=True)]
    rows: list[dict[str, Any]] = []

    def add(quantity: str, found: list[float], unit: str, bar: float | None = None) -> None:
        median = statistics.median(found)
        met = None if bar is None else median <= bar
        rows.append({"quantity": quantity, "values": found, "median": median, "unit": unit, "bar": bar, "met": met})

    add("parity: largest relative difference of REAP scores", values("parity", "relative"), "", PARITY_BAR)
    add("parity: layers with another kept set", [1 - s for s in values("parity", "same_sets")], "share", 0.0)
    add("plain forward: load", values(f"plain {SHORT}", "load"), "s")
    add(f"plain forward: {SHORT * LENGTH} tokens", values(f"plain {SHORT}", "forward"), "s")
    add("plain forward: slope", plain, "us/token")
    for phase in ("open", "digest", "calibrate", "plan", "apply"):
        add(f"moebench: {phase}", values(f"streamed {SHORT}", phase), "s")
    add("moebench: calibration slope", ours, "us/token")
    add("calibration slope / plain forward slope", ratio, "", SLOPE_BAR)
    add(f"whole job, {SHORT * LENGTH} tokens", values(f"streamed {SHORT}", "total"), "s", SECONDS_BAR)
    add("imports", values(f"streamed {SHORT}", "imports_gib"), "GiB")
    add("plain forward: peak RSS above imports", values(f"plain {SHORT}", "peak_gib"), "GiB")
    shallow, deep = values(f"streamed {SHORT}", "peak_gib"), values("streamed 16 layers", "peak_gib")
    add("peak RSS above imports, 8 layers", shallow, "GiB", MEMORY_BAR)
    add("peak RSS above imports, 16 layers", deep, "GiB", MEMORY_BAR)
    add("peak RSS, 16 layers less 8", [b - a for a, b in zip(shallow, deep, strict=True)], "GiB", DEPTH_SLACK)
    add(f"peak RSS above imports, {LONG * LENGTH} tokens", values(f"streamed {LONG}", "peak_gib"), "GiB")
    return rows


def environment() -> dict[str, str]:
    """Return processor and versions."""
    names = [line.split(":", 1)[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    packages = {name: version(name) for name in ("torch", "transformers", "numpy", "safetensors")}
    return {"cpu": names[0] if names else platform.processor(), "python": platform.python_version(), **packages}


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(rows: list[dict[str, Any]], about: dict[str, str], pairs: int) -> Table:
    """Return the table for the terminal.

    Args:
        rows: as ``summary`` gives them.
        about: processor and versions.
        pairs: alternations that were run.
    """
    caption = ", ".join(f"{key} {value}" for key, value in about.items())
    result = Table(title=f"Calibration on m64, one thread, CPU seconds, {pairs} pairs", caption=caption)
    for column, justify in (
        ("quantity", "left"),
        ("median", "right"),
        ("range", "right"),
        ("bar", "right"),
        ("", "left"),
    ):
        result.add_column(column, justify="left" if justify == "left" else "right")
    for row in rows:
        span = f"{min(row['values']):.3g} - {max(row['values']):.3g}"
        bar = "" if row["bar"] is None else f"<= {row['bar']:g}"
        verdict = {None: "", True: "[green]pass[/]", False: "[red]FAIL[/]"}[row["met"]]
        result.add_row(row["quantity"], f"{row['median']:.3g} {row['unit']}".strip(), span, bar, verdict)
    return result


def main() -> None:
    """Measure, print the table, and leave with status 1 if a bar is missed."""
    parser = argparse.ArgumentParser(prog="python -m bench.perf.calibration", description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, choices=range(3, 10), metavar="3..9", help="alternations")
    parser.add_argument(
        "--cache", type=Path, default=Path(tempfile.gettempdir()) / "moebench-perf", help="where m64 is kept"
    )
    parser.add_argument("--out", type=Path, help="write all measurements as JSON")
    arguments = parser.parse_args()
    results = measure(arguments.cache, arguments.pairs)
    rows, about = summary(results), environment()
    console = Console(width=None if sys.stdout.isatty() else 130)
    console.print(table(rows, about, arguments.pairs))
    if arguments.out:
        document = {"environment": about, "pairs": arguments.pairs, "rows": rows, "measurements": results}
        write_atomically(arguments.out, json.dumps(document, indent=1) + "\n")
    sys.exit(any(row["met"] is False for row in rows))


if __name__ == "__main__":
    main()
