"""What may be called best: a run that is separated from every other one, and a speed that is separated from the base's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.formatting import known
from analysis.ranking import other_seeds, within_noise

Row = Mapping[str, Any]
QUALITIES = ("average", "retention", "perplexity_retention")
SPEEDS = ("prefill_ratio", "decode_ratio")


def best(rows: Sequence[Row]) -> dict[str, str]:
    """Return for each of ``QUALITIES`` and ``SPEEDS`` the id of the compressed run that is the best of them, if one is.

    Args:
        rows: runs of one board.
    """
    runs = [row for row in rows if not row["is_base"]]
    found = {name: best_quality(runs, name) for name in QUALITIES} | {name: fastest(runs, name) for name in SPEEDS}
    return {name: str(row["id"]) for name, row in found.items() if row is not None}


def best_quality(runs: Sequence[Row], name: str = "quality") -> Row | None:
    """Return the run with the largest value of ``name`` if it is separated from all others, else None.

    Separated: the 95 % interval of the difference of the two leaves out 0 (``analysis.ranking.within_noise``), both were measured
    with the same seeds, and no interval is one of an earlier version. A run without a rival is the best of nothing.

    Args:
        runs: compressed runs of one board.
        name: one of ``QUALITIES``, or ``quality``, by which runs rank.
    """
    name = ranked_by(runs) if name == "quality" else name
    valued = sorted((row for row in runs if known(row[name])), key=lambda row: -row[name])
    if len(valued) < 2 or not all(separated(valued[0], row, name) for row in valued[1:]):
        return None
    return valued[0]


def ranked_by(runs: Sequence[Row]) -> str:
    """Return what runs of one board rank by: their average, or perplexity_retention where no task has an accuracy."""
    return "average" if any(known(row["average"]) for row in runs) else "perplexity_retention"


def separated(first: Row, second: Row, name: str = "average") -> bool:
    """Tell whether two runs differ in quality beyond noise, as far as their records tell; False where they do not tell.

    Args:
        first: a run.
        second: another run of its board.
        name: one of ``QUALITIES``.
    """
    if other_seeds(first["seed_set"], second["seed_set"]) or first["old_intervals"] or second["old_intervals"]:
        return False
    if name == "perplexity_retention":
        return within_noise(*(_by_perplexity(row) for row in (first, second))) is False
    return within_noise(first, second) is False


def _by_perplexity(row: Row) -> Row:
    """Return a run as one whose quality is its perplexity."""
    nothing = {"difference_low": math.nan, "difference_high": math.nan}
    return {"quality": row["perplexity_retention"], "quality_error": row["perplexity_retention_error"], **nothing}


def fastest(runs: Sequence[Row], name: str = "decode_ratio") -> Row | None:
    """Return the run with the largest ratio if it is faster than the base and than all others beyond noise, else None.

    Its interval leaves out 1, nothing marks it (noisy, drifting, uneven, correlated), and the interval of its ratio to each
    other run's, distances of the ends in squares on a logarithmic scale, leaves out 1.

    Args:
        runs: compressed runs of one board; those that were run densely claim no speed and are passed over.
        name: one of ``SPEEDS``.
    """
    timed = [row for row in runs if known(row[name]) and row["timing_realisation"] != "dense"]
    first = max(timed, key=lambda row: row[name], default=None)
    if first is None or not faster_than_base(first, name):
        return None
    rivals = [row for row in timed if row is not first]
    return first if all(_faster(first, row, name) for row in rivals) else None


def faster_than_base(row: Row, name: str = "decode_ratio") -> bool:
    """Tell whether a run is faster than the base beyond noise: its interval lies above 1, and nothing marks it."""
    return not row["timing_marks"] and known(row[f"{name}_low"]) and row[f"{name}_low"] > 1.0


def _faster(first: Row, second: Row, name: str) -> bool:
    low, high = first[f"{name}_low"], second[f"{name}_high"]
    if not (known(low) and known(high)) or second[name] <= 0:
        return False
    noise = math.hypot(math.log(first[name] / low), math.log(high / second[name]))
    return math.log(first[name] / second[name]) > noise
