"""The one number that stands for the quality of a row."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.protocol import headline, is_accuracy
from bench.records.record import Score


def average(scores: Sequence[Score]) -> float | None:
    """Return the mean of the headline metrics in which more is better, as the leaderboard has it; None where there is none."""
    values = [score.value for score in headline(scores).values() if is_accuracy(score)]
    return sum(values) / len(values) if values else None
