"""Many comparisons at once: what survives Holm's correction over the runs of a model, and how many would differ by chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.inference import holm

Row = Mapping[str, Any]
LEVEL = 0.05


def corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """Return ``frame`` with ``difference_p_holm``, ``difference_family`` and ``survives_holm``.

    A family is all complete runs of one model at one share, whatever they were scored on; the share is the setting ``keep`` that
    was asked for, or else the effective one, in whole percent.
    """
    share = frame["keep_asked"].fillna(frame["keep"]).tolist()
    contents, values = frame["content"].tolist(), frame["difference_p"].tolist()
    tested = (frame["status"] == "complete") & ~frame["is_base"] & frame["difference_p"].notna()
    families: dict[tuple[str, float], list[int]] = {}
    for place in tested.to_numpy(dtype=bool).nonzero()[0].tolist():
        kept = share[place]
        families.setdefault((str(contents[place]), -1.0 if pd.isna(kept) else round(kept, 2)), []).append(place)
    corrected_p: list[float | None] = [None] * len(frame)
    sizes: list[int | None] = [None] * len(frame)
    for members in families.values():
        for place, p in zip(members, holm([values[place] for place in members]), strict=True):
            corrected_p[place], sizes[place] = p, len(members)
    survives = [None if p is None else p < LEVEL for p in corrected_p]
    return frame.assign(
        difference_p_holm=pd.array(corrected_p, dtype="float64"),
        difference_family=pd.array(sizes, dtype="Int64"),
        survives_holm=pd.array(survives, dtype="boolean"),
    )


def runs_by_chance(rows: Sequence[Row]) -> str:
    """Return how many of a board's differences to the base chance alone would make, and how many there are; empty without any.

    Args:
        rows: complete runs of one board, with the columns of ``corrected``.
    """
    found = [row["difference_p"] for row in rows if not row["is_base"] and row["difference_p"] is not None]
    survivors = sum(row["survives_holm"] is True for row in rows)
    told = _by_chance(found, "runs", "the base")
    return f"{told[:-1]}, and {survivors} survive Holm's correction within model and share (†)." if told else ""


def tasks_by_chance(scores: Sequence[Row]) -> str:
    """Return the same of single tasks; empty where nothing is paired.

    Args:
        scores: scores of one board's runs; those that speak for their task are counted.
    """
    return _by_chance(
        [row["p"] for row in scores if row["headline"] and row["p"] is not None], "task scores", "the base's"
    )


def gains_by_chance(rows: Sequence[Row]) -> str:
    """Return the same of gains by training; empty where none has an interval.

    Args:
        rows: trained runs of one board, with a p of the gain.
    """
    return _by_chance(
        [row["gain_p"] for row in rows if row["gain_p"] is not None], "trained runs", "what they were trained from"
    )


def _by_chance(found: Sequence[float], what: str, reference: str) -> str:
    if not found:
        return ""
    expected, seen = LEVEL * len(found), sum(p < LEVEL for p in found)
    return (
        f"{len(found)} {what} are compared with {reference}: were there no difference at all, up to {expected:.1f} of them would "
        f"differ by chance (p < {LEVEL:g}); {seen} do."
    )
