"""Ranks within a board, ties within noise, the recovery floor and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, TypeAlias

import pandas as pd

from analysis.inference import Z95
from analysis.pareto import pareto

FLOOR = 0.9
Row: TypeAlias = "Mapping[str, Any] | pd.Series[Any]"


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
    ranked["rank"] = pd.array([pd.NA] * len(ranked), dtype="Int64")
    ranked["tie_next"] = pd.array([pd.NA] * len(ranked), dtype="boolean")
    ranked["next_other_seeds"] = pd.array([pd.NA] * len(ranked), dtype="boolean")
    ranked["pareto"] = pd.array([pd.NA] * len(ranked), dtype="boolean")
    for _, board in ranked.groupby("board", sort=False):
        placed = board.index[~board["is_base"] & board["quality"].notna()]
        for place, index in enumerate(placed):
            ranked.loc[index, "rank"] = place + 1
        for first, second in pairwise(placed):
            other = other_seeds(ranked.loc[first, "seed_set"], ranked.loc[second, "seed_set"])
            ranked.loc[first, "next_other_seeds"] = other
            tie = within_noise(ranked.loc[first], ranked.loc[second])
            if tie is not None and not other:
                ranked.loc[first, "tie_next"] = tie
        known = board.index[board["quality"].notna() & board["bytes"].notna()]
        front = pareto([float(v) for v in board.loc[known, "bytes"]], [float(v) for v in board.loc[known, "quality"]])
        for index, on in zip(known, front, strict=True):
            ranked.loc[index, "pareto"] = on
    return ranked


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
