"""What a reader wants first: the counts, the best of each model, and the runs that did not complete."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from analysis.formatting import fixed, interval, known, percent, size
from analysis.plain_rows import rows_of
from analysis.provenance import Block
from analysis.separation import best_quality, fastest, ranked_by, separated
from analysis.table import board_names, boards, is_dense, run_name, text_of


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
    for model, rows in complete[complete["old_intervals"]].groupby("model", sort=True):
        found.append(
            f"{_plural(len(rows), 'run')} of {model} {'has' if len(rows) == 1 else 'have'} intervals of an earlier version, "
            "marked °: the percentile bootstrap, too short where few items changed. None of them is called best; run them again "
            "for intervals that cover."
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


_NO_SPEED = "no unmarked speed is separated from the base's and from all others"


def cards(frame: pd.DataFrame, floor: float) -> list[Card]:
    """Return for each board with compressed runs: base, best run, smallest and fastest run at or above ``floor``.

    A run is called best or fastest only if it is separated from all others (``analysis.separation``).
    """
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
        facts.append(_best(runs))
        above = [row for row in runs if row["below_floor"] is False]
        line = f"≥ {percent(floor, digits=0)} %"
        if above:
            smallest = min(above, key=lambda row: (row["bytes"] if known(row["bytes"]) else float("inf"), row["rank"]))
            share = f"{percent(smallest['keep_bytes'], digits=0)} % of bytes, " if known(smallest["keep_bytes"]) else ""
            facts.append((f"Smallest {line}", run_name(smallest), share + _quality(smallest)))
        else:
            facts.append((f"Smallest {line}", "none", "no run recovers that much"))
        if any(known(row["decode_ratio"]) and not is_dense(row) for row in above):
            first = fastest(above)
            detail = "no unmarked speed is separated from the base's and from all others"
            facts.append(
                (f"Fastest {line}", run_name(first), _decode(first))
                if first
                else (f"Fastest {line}", "undecided", detail)
            )
        found.append(Card(name, tuple(facts)))
    return found


def _best(runs: list[dict[str, Any]]) -> tuple[str, str, str]:
    """Return the best run, or that none is separated from all others and how many are within noise of the first."""
    if len(runs) == 1:
        return ("Only run", run_name(runs[0]), _quality(runs[0]))
    if (first := best_quality(runs)) is not None:
        return ("Best quality", run_name(first), _quality(first))
    alike = 1 + sum(not separated(runs[0], row, ranked_by(runs)) for row in runs[1:])
    return ("Best quality", "undecided", f"the first of {alike} runs that are not separated {_quality(runs[0])}")


def _decode(row: Mapping[str, Any]) -> str:
    return f"decode {fixed(row['decode_ratio'], 2)} {interval(row['decode_ratio_low'], row['decode_ratio_high'], 1, 2)} × base"


def _quality(row: Mapping[str, Any]) -> str:
    if known(row["retention"]):
        ends = interval(row["retention_low"], row["retention_high"], 100)
        return f"retains {percent(row['retention'])} % {ends}".rstrip()
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
        "A task's difference to the base is paired, item by item. Of items that are right or wrong, its 95 % interval is "
        "the hull of Tango's score interval, Agresti and Min's adjusted Wald interval and the exact conditional one, and "
        "p is McNemar's exact test; both are made to agree: the interval leaves out 0 exactly where p < 0.05. Of all "
        "other items, perplexities among them, the interval is the hull of the expanded percentile bootstrap and of "
        "Student's with its skewness taken out (and the adjusted Wald interval where values lie between 0 and 1), and p "
        "is the largest of the p-values that belong to these, so they agree too. Few documents of very unequal "
        "damage are covered less often than 95 % (docs/trust.md). Records of earlier versions have plain percentile "
        "bootstraps and are marked °, or expanded ones, whose p may be below 0.05 where the interval holds 0.",
        "The difference to the base is the mean of the tasks' differences. Tasks share no items, so the distances of their "
        "intervals' ends add in squares, each side by itself; p is that of a normal error as long as the side towards 0, so it "
        "is below 0.05 exactly where the interval leaves out 0.",
        "Tasks worse: p < 0.05 after Holm's correction over the tasks of that run. †: the difference of the averages has "
        "p < 0.05 after Holm's correction over all runs of the model at that share. Other differences are not corrected: "
        "below a table stands how many of them chance alone would make.",
        "Bold, best and fastest: separated from all others of the model, that is, the 95 % interval of the difference leaves "
        "out 0. A speed is also separated from the base's, and carries no mark.",
        "Neighbouring ranks are within noise when the 95 % interval of their difference covers 0; it takes the errors "
        "of their differences to the base as independent, which makes it if anything too wide.",
        f"The floor is {percent(floor, digits=0)} % retention. Runs below it are marked, not hidden: size and speed "
        "mean little there.",
        "Speeds are medians of repeats under vLLM in alternation with the base; intervals are those of the sign test, at least "
        "95 %, wider where repeats went on until they looked good or are alike, and joined with Student's where repeats are few. "
        "Marks: noisy, the interval is wider than the protocol allows; drifting, the base changed meanwhile; uneven, unequal "
        "shares of the processor; correlated, repeats that follow each other are alike. Where nothing was timed, the reason "
        "stands instead; where the engine held values or zeros in the place of the compressed form, no speed is claimed and "
        "`dense` stands there.",
    ]


def board_titles(frame: pd.DataFrame) -> dict[str, str]:
    """Return the boards with their headings; empty for an empty frame."""
    return board_names(frame) if len(frame) else {}
