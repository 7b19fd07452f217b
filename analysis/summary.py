"""What a reader wants first: the counts, the best of each model, and the runs that did not complete."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.formatting import fixed, known, percent, size
from analysis.provenance import Block
from analysis.table import board_names, boards, is_dense, rows_of, run_name, text_of


@dataclass(frozen=True)
class Card:
    """A few facts of one board: name, value, detail."""

    name: str
    facts: tuple[tuple[str, str, str], ...]


def lead(frame: pd.DataFrame) -> str:
    """Return one line that counts runs, models and methods, and dates the latest."""
    if not len(frame):
        return "No runs."
    complete = int(frame["seeds"].where(frame["status"] == "complete", 0).sum())
    counts = [
        _plural(complete, "complete run"),
        _plural(frame["content"].nunique(), "model"),
        _plural(frame["method"].nunique(), "method"),
    ]
    return f"{' · '.join(counts)} · latest run {str(frame['created'].max())[:10]}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def messages(frame: pd.DataFrame, problems: tuple[str, ...] = ()) -> list[str]:
    """Return what is missing or odd, one sentence each."""
    found = [f"Left out: {problem}" for problem in problems]
    if not len(frame):
        return [*found, "No records here yet: run `moebench run` (or `make demo`) first, then the report again."]
    complete = frame[(frame["status"] == "complete").astype(bool)]
    if not len(complete):
        found.append("No run completed; the reasons are listed below.")
    elif complete["is_base"].all():
        found.append("Only the uncompressed model was measured: run a method to have something to compare.")
    for model, rows in complete[~complete["is_base"].astype(bool)].groupby("model", sort=True):
        sets = rows[rows["seed_set"] != ""].groupby("seed_set")["seeds"].count()
        if len(sets) > 1:
            told = "; ".join(f"{count} with {name}" for name, count in sets.items())
            found.append(
                f"The rows of {model} were not all measured with the same seeds ({told}): "
                "compare rows of different seeds with care."
            )
    orphans = complete[
        ~complete["is_base"].astype(bool) & complete["base_average"].isna() & complete["average"].notna()
    ]
    for model, rows in orphans.groupby("model", sort=True):
        found.append(
            f"{_plural(len(rows), 'run')} of {model} cannot be compared with its base: "
            "no base was measured on the same tasks and items; run the base with the same settings."
        )
    return found


def cards(frame: pd.DataFrame, floor: float) -> list[Card]:
    """Return for each board with compressed runs: base, best run, smallest and fastest run at or above ``floor``."""
    found = []
    for name, rows in boards(frame):
        runs = [row for row in rows if known(row["rank"])]
        if not runs:
            continue
        base = next((row for row in rows if row["is_base"]), None)
        facts = []
        if base is not None and known(base["average"]):
            detail = f"{size(base['bytes'])}, {base['tasks']} tasks"
            facts.append(("Uncompressed", f"{percent(base['average'], base['average_error'])} %", detail))
        facts.append(("Best quality", run_name(runs[0]), _quality(runs[0])))
        above = [row for row in runs if row["below_floor"] is False]
        line = f"≥ {percent(floor, digits=0)} %"
        if above:
            smallest = min(above, key=lambda row: (row["bytes"] if known(row["bytes"]) else float("inf"), row["rank"]))
            share = f"{percent(smallest['keep_bytes'], digits=0)} % of bytes, " if known(smallest["keep_bytes"]) else ""
            facts.append((f"Smallest {line}", run_name(smallest), share + _quality(smallest)))
        else:
            facts.append((f"Smallest {line}", "none", "no run recovers that much"))
        timed = [row for row in above if known(row["decode_ratio"]) and not is_dense(row)]
        if timed:
            fastest = max(timed, key=lambda row: (row["decode_ratio"], -row["rank"]))
            facts.append((f"Fastest {line}", run_name(fastest), f"decode {fixed(fastest['decode_ratio'], 2)} × base"))
        found.append(Card(name, tuple(facts)))
    return found


def _quality(row: dict[str, Any]) -> str:
    if known(row["retention"]):
        return f"retains {percent(row['retention'])} %"
    if known(row["average"]):
        return f"average {percent(row['average'], row['average_error'])} %"
    return f"perplexity, base/run {fixed(row['quality'], 3)}"


def failures(frame: pd.DataFrame) -> Block:
    """Return the runs that did not complete, with their reasons."""
    rows = rows_of(frame[(frame["status"] != "complete").astype(bool)]) if len(frame) else []
    lines = tuple(
        (row["model"], run_name(row), row["status"], text_of(row["reason"]) or "no reason recorded") for row in rows
    )
    return Block("Refused, failed and cancelled runs", ("model", "method", "status", "reason"), lines)


def notes(floor: float) -> list[str]:
    """Return how the numbers were made, a sentence each."""
    return [
        "The average is the plain mean of one accuracy-like metric a task (length-normalised accuracy where a task has "
        "it) over the tasks that run and base share; its error is sqrt(sum se²)/n. Perplexities are shown beside it, "
        "not in it.",
        "Runs that differ only in their seeds, of the calibration text or of the method, are one row: the mean, ± half of "
        "its 95 % interval over the seeds (Student t, with the number of seeds). The error of the items does not shrink "
        "with seeds; it is kept apart, and the difference to the base holds both. Where neighbouring ranks have other "
        "seeds, nothing is said about noise.",
        "Retention is that average over the base's, measured here on the same tasks, items and settings. Its interval "
        "takes the base's average as exact.",
        "The difference to the base is the mean of the tasks' paired differences. A task's standard error is the width "
        "of its 95 % interval over 3.92; tasks share no items, so errors add in squares; interval and p-value are "
        "normal.",
        "Tasks worse: p < 0.05 after Holm's correction over the tasks of that run. There is no correction over runs: "
        "among many runs some differences are chance.",
        "Neighbouring ranks are within noise when the 95 % interval of their difference covers 0; it takes the errors "
        "of their differences to the base as independent, which makes it if anything too wide.",
        f"The floor is {percent(floor, digits=0)} % retention. Runs below it are marked, not hidden: size and speed "
        "mean little there.",
        "Speeds are medians of repeats under vLLM in alternation with the base; intervals are those of the sign test, 95 % "
        "(93.75 % with five repeats). Where nothing was timed, the reason stands instead; where the engine held values or "
        "zeros in the place of the compressed form, no speed is claimed and `dense` stands there.",
    ]


def board_titles(frame: pd.DataFrame) -> dict[str, str]:
    """Return the boards with their headings; empty for an empty frame."""
    return board_names(frame) if len(frame) else {}
