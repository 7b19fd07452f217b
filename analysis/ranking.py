"""Ranks within a board, ties within noise, the recovery floor and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import pandas as pd

from analysis.inference import Z95
from analysis.pareto import pareto
from analysis.plain_rows import rows_of

FLOOR = 0.9
Row: TypeAlias = Mapping[str, Any]


def rank(frame: pd.DataFrame, floor: float = FLOOR) -> pd.DataFrame:
    """Return ``frame`` ordered, with ``quality``, ``rank``, ``tie_next``, ``below_floor`` and ``pareto``.

    Order: model, board, base first, then quality (ties: fewer bytes, method, knobs, id), then runs without quality.

    Two neighbours are within noise when the 95 % interval of their difference covers 0. Records hold no items, so that
    interval takes the errors of their paired differences to the base as independent; items shared by the two runs
    make them positively correlated, so the interval is if anything too wide. Without paired differences, the errors
    of the averages are used. Rows over seeds carry the error of the seeds too. Between rows that were measured with
    different seeds nothing is said, and ``next_other_seeds`` marks the first of the two.
    """
    ranked = frame.copy()
    by_perplexity = ranked["average"].isna()
    ranked["quality"] = ranked["average"].where(~by_perplexity, ranked["perplexity_retention"])
    seeds = ranked["average_seeds"].fillna(0.0) / Z95
    error = (ranked["average_error"] ** 2 + seeds**2) ** 0.5
    ranked["quality_error"] = error.where(~by_perplexity, ranked["perplexity_retention_error"])
    ranked = ranked.sort_values(
        by=["model", "board", "is_base", "quality", "bytes", "method", "knobs", "variant", "id"],
        ascending=[True, True, False, False, True, True, True, True, True],
        na_position="last",
        kind="stable",
    ).reset_index(drop=True)
    recovered = ranked["retention"].where(ranked["average"].notna(), ranked["perplexity_retention"])
    ranked["below_floor"] = (recovered < floor).astype("boolean").mask(recovered.isna() | ranked["is_base"])
    rows = rows_of(ranked[[*_READ]])
    found: list[dict[str, Any]] = [dict.fromkeys(_PLACED) for _ in rows]
    boards: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        boards.setdefault(row["board"], []).append(place)
    for members in boards.values():
        measured = [place for place in members if rows[place]["quality"] is not None]
        placed = [place for place in measured if not rows[place]["is_base"]]
        for number, place in enumerate(placed, start=1):
            found[place]["rank"] = number
        for first, second in pairwise(placed):
            other = other_seeds(rows[first]["seed_set"] or "", rows[second]["seed_set"] or "")
            found[first]["next_other_seeds"] = other
            found[first]["tie_next"] = None if other else within_noise(rows[first], rows[second])
        sized = [place for place in measured if rows[place]["bytes"] is not None]
        front = pareto([float(rows[p]["bytes"]) for p in sized], [float(rows[p]["quality"]) for p in sized])
        for place, on in zip(sized, front, strict=True):
            found[place]["pareto"] = on
    return ranked.assign(**{name: pd.array([one[name] for one in found], dtype=kind) for name, kind in _PLACED.items()})


_PLACED = {"rank": "Int64", "tie_next": "boolean", "next_other_seeds": "boolean", "pareto": "boolean"}
"""What is found by looking at the other rows of a board, with its types."""

_READ = ("board", "is_base", "quality", "quality_error", "difference_low", "difference_high", "seed_set", "bytes")


def within_noise(first: Row, second: Row) -> bool | None:
    """Tell whether the 95 % interval of the difference of two rows' quality covers 0; None without errors."""
    errors = [_paired_error(row) for row in (first, second)]
    if any(math.isnan(error) for error in errors):
        errors = [_number(row["quality_error"]) for row in (first, second)]
    if any(math.isnan(error) for error in errors):
        return None
    gap = abs(float(first["quality"]) - float(second["quality"]))
    return gap <= Z95 * math.hypot(*errors)


def other_seeds(first: str, second: str) -> bool:
    """Tell whether two rows were measured with different seeds; one that no seed can change goes with any."""
    return bool(first) and bool(second) and first != second


def _paired_error(row: Row) -> float:
    return (_number(row["difference_high"]) - _number(row["difference_low"])) / (2 * Z95)


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)
