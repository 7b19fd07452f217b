"""The data of the interactive quality-against-size plot."""

from __future__ import annotations

from typing import Any

import pandas as pd

from analysis.formatting import NONE, count, fixed, known, percent, size
from analysis.inference import Z95
from analysis.knobs import shown_knobs
from analysis.palette import DARK, LIGHT, SYMBOLS, places
from analysis.pareto import pareto
from analysis.plain_rows import rows_of
from analysis.protocol import ACCURACIES
from analysis.table import average_text, board_names, is_dense, settings_text, task_error, task_text

SIZES = {
    "bytes": "Tensor bytes on disk",
    "parameters": "Total parameters",
    "routed_parameters": "Routed-expert parameters",
    "active_parameters": "Active parameters per token",
    "flops": "FLOPs of a 2048-token forward",
}
_READ = ("id", "task", "metric", "value", "stderr", "seeds", "seed_half")
Measure = tuple[float, float | None]


def explorer(frame: pd.DataFrame, scores: pd.DataFrame) -> dict[str, Any]:
    """Return points, axes, colours and Pareto fronts of the plot, as plain JSON values.

    Only complete runs with a cost are points. Error bars are 95 % intervals (1.96 standard errors).
    """
    names = board_names(frame)
    complete = [row for row in rows_of(frame) if row["status"] == "complete" and known(row["bytes"])]
    tasks = scores[scores["headline"].astype(bool)]
    by_run: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(tasks[[*_READ]]):
        by_run.setdefault(row["id"], []).append(row)
    measures = [_measures(row, by_run.get(row["id"], [])) for row in complete]
    qualities = _qualities(tasks, {name for measure in measures for name in measure})
    methods = places(row["title"] for row in complete if not row["is_base"])
    shown = [board for board in names if any(row["board"] == board for row in complete)]
    return {
        "boards": [
            {"key": board, "name": names[board], "symbol": SYMBOLS[place % len(SYMBOLS)]}
            for place, board in enumerate(shown)
        ],
        "methods": [
            {"title": title, "light": LIGHT[place % len(LIGHT)], "dark": DARK[place % len(DARK)]}
            for title, place in methods.items()
        ],
        "qualities": qualities,
        "sizes": [_axis(name, label, complete) for name, label in SIZES.items()],
        "points": [
            {
                "id": row["id"],
                "board": row["board"],
                "title": row["title"],
                "series": series(row),
                "base": bool(row["is_base"]),
                "size": {name: row[name] for name in SIZES},
                "quality": {name: [_short(one) for one in value] for name, value in measure.items()},
                "text": _hover(row, by_run.get(row["id"], [])),
            }
            for row, measure in zip(complete, measures, strict=True)
        ],
        "fronts": _fronts(complete, measures, shown, {quality["key"]: quality["up"] for quality in qualities}),
    }


def _short(value: float | None) -> float | None:
    """Return six digits of a value: finer than a plot shows."""
    return None if value is None else float(f"{value:.6g}")


def series(row: dict[str, Any]) -> str:
    """Return what points of one line share: the method, its shown knobs that are words, the seed, and the variant."""
    knobs = [knob for knob in shown_knobs(row["method"], row["knobs"] or "").split(", ") if knob]
    kept = [knob for knob in knobs if knob.startswith("seed=") or not _is_number(knob.partition("=")[2])]
    return ", ".join([row["title"], *kept, *([row["variant"]] if row["variant"] else [])])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _measures(row: dict[str, Any], scores: list[dict[str, Any]]) -> dict[str, Measure]:
    """Return value and half-width of the 95 % interval of each quality of a run."""
    found: dict[str, Measure] = {}
    if known(row["average"]):
        found["average"] = (100 * row["average"], _half(row["quality_error"], 100))
    if known(row["retention"]):
        half = (row["retention_high"] - row["retention_low"]) * 50 if known(row["retention_low"]) else None
        found["retention"] = (100 * row["retention"], None if row["is_base"] else half)
    if known(row["perplexity_retention"]):
        found["perplexity_retention"] = (
            100 * row["perplexity_retention"],
            _half(row["perplexity_retention_error"], 100),
        )
    for score in scores:
        scale = 100 if score["metric"] in ACCURACIES else 1
        half = scale * score["seed_half"] if score["seeds"] > 1 else _half(score["stderr"], scale)
        found[f"task {score['task']}"] = (scale * score["value"], half)
    return found


def _half(error: float | None, scale: float) -> float | None:
    return Z95 * scale * error if error is not None and known(error) else None


def _qualities(tasks: pd.DataFrame, present: set[str]) -> list[dict[str, Any]]:
    fixed_names = {
        "average": "Average accuracy, %",
        "retention": "Retention of the base's average, %",
        "perplexity_retention": "Perplexity, base over run, %",
    }
    found = [{"key": key, "label": label, "up": True} for key, label in fixed_names.items() if key in present]
    for row in rows_of(tasks.drop_duplicates("task").sort_values("task")):
        unit = ", %" if row["metric"] in ACCURACIES else ""
        label = f"{row['task']} ({row['metric']}){unit}"
        found.append({"key": f"task {row['task']}", "label": label, "up": bool(row["higher_is_better"])})
    return found


def _axis(name: str, label: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return title and divisor of a size axis, in the unit of the largest value."""
    largest = max((row[name] for row in rows), default=1)
    text = size(largest) if name == "bytes" else count(largest)
    unit = text.partition(" ")[2]
    step, units = (
        (1024, ("B", "KiB", "MiB", "GiB", "TiB")) if name == "bytes" else (1000, ("", "k", "M", "G", "T", "P"))
    )
    return {"key": name, "label": f"{label}, {unit}" if unit else label, "divisor": step ** units.index(unit)}


def _fronts(
    rows: list[dict[str, Any]], measures: list[dict[str, Measure]], boards: list[str], qualities: dict[str, bool]
) -> dict[str, dict[str, dict[str, list[int]]]]:
    """Return, by board, quality and size, the points on the front, by growing size."""
    fronts: dict[str, dict[str, dict[str, list[int]]]] = {}
    for board in boards:
        members = [index for index, row in enumerate(rows) if row["board"] == board]
        for quality, up in qualities.items():
            found = [measures[index].get(quality) for index in members]
            values = [None if value is None else value[0] if up else -value[0] for value in found]
            for name in SIZES:
                sizes = [float(rows[index][name]) for index in members]
                front = [i for i, on in zip(members, pareto(sizes, values), strict=True) if on]
                front.sort(key=lambda i: (rows[i][name], i))
                fronts.setdefault(board, {}).setdefault(quality, {})[name] = front
    return fronts


def _hover(row: dict[str, Any], scores: list[dict[str, Any]]) -> str:
    """Return the lines of a point's hover text, separated by newlines, not yet escaped."""
    lines = [row["title"], settings_text(row), f"average {average_text(row)} %"]
    if not row["is_base"]:
        lines.append(f"retention {percent(row['retention'])} %, rank {row['rank'] if known(row['rank']) else NONE}")
    lines.append(
        f"{size(row['bytes'])}, {count(row['parameters'])} parameters, keeps {percent(row['keep'])} % of experts"
    )
    if known(row["decode_ratio"]) and not is_dense(row):
        lines.append(f"decode {fixed(row['decode_ratio'], 2)} ×, prefill {fixed(row['prefill_ratio'], 2)} ×")
    shown = scores[:12]
    lines += [f"{s['task']}: {task_text(s['value'], task_error(s), s['metric'] in ACCURACIES)}" for s in shown]
    if len(scores) > len(shown):
        lines.append(f"and {len(scores) - len(shown)} more tasks")
    return "\n".join(line for line in lines if line)
