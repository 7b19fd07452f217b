"""The cells of a study: a method's score with its seeds, and which cells differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from analysis.averaging import SeedAverage
from analysis.comparison import Comparison, seeds_of
from analysis.inference import Z95, Difference, SeedMean, difference, mean, over_seeds
from analysis.protocol import error_of

AVERAGE = ""
"""Name of the column that holds the average over tasks."""


@dataclass(frozen=True)
class Cell:
    """One method's score in one column, 0 to 1.

    Args:
        by_seed: score of each seed; one entry under an empty key where no seed can change it.
        error: standard error over items of the difference to the base, or of the score where that is not paired.
    """

    by_seed: Mapping[tuple[int, ...], float]
    error: float

    @cached_property
    def mean(self) -> SeedMean:
        """Mean over seeds with its interval."""
        return over_seeds(list(self.by_seed.values()))

    @property
    def seedless(self) -> bool:
        """Whether no seed can change the score."""
        return list(self.by_seed) == [()]


def cell(row: Comparison, column: str) -> Cell | None:
    """Return the cell of a row for a task, or for ``AVERAGE``; None where it was not scored."""
    return _over(row, lambda member: _scored(member, column))


def perplexity_cell(row: Comparison) -> Cell | None:
    """Return the logarithm of the base's perplexity over the row's, so that more is better; None without a perplexity."""

    def logarithm(member: Comparison) -> tuple[float, float] | None:
        value, error = member.perplexity_retention
        return (math.log(value), (error or 0.0) / value) if value else None

    return _over(row, logarithm)


def _over(row: Comparison, scored: Callable[[Comparison], tuple[float, float] | None]) -> Cell | None:
    """Return the cell of what ``scored`` says of each run of a row, value and error; None where it is silent on one."""
    members = row.members if isinstance(row, SeedAverage) else (row,)
    keys = [seeds_of(member.record)[:1] for member in members]
    if len(set(keys)) < len(keys):
        keys = [seeds_of(member.record) for member in members]
    found = [scored(member) for member in members]
    known = [one for one in found if one is not None]
    if len(known) < len(found):
        return None
    return Cell({key: value for key, (value, _) in zip(keys, known, strict=True)}, mean([error for _, error in known]))


def _scored(row: Comparison, column: str) -> tuple[float, float] | None:
    if column == AVERAGE:
        value, error = row.average
        change = row.difference
    else:
        if column not in row.scores:
            return None
        value, error = row.scores[column].value, error_of(row.scores[column])
        change = row.task_difference(column) if row.base is not None and not row.is_base else None
    if value is None:
        return None
    return value, change.error if change is not None else error or 0.0


def contrast(first: Cell, second: Cell) -> Difference:
    """Return ``first`` minus ``second`` with a 95 % interval over items and seeds.

    Where both have the same seeds, the differences are taken seed by seed and the interval over seeds is theirs; else
    the two intervals over seeds add in squares. The items' errors, those of the differences to the base, are taken as
    independent: items shared by the two make them positively correlated, so the interval is if anything too wide.
    """
    if not first.seedless and first.by_seed.keys() == second.by_seed.keys():
        seeds = over_seeds([first.by_seed[seed] - second.by_seed[seed] for seed in sorted(first.by_seed)]).half or 0.0
    else:
        seeds = math.hypot(first.mean.half or 0.0, second.mean.half or 0.0)
    items = Z95 * math.hypot(first.error, second.error)
    return difference(first.mean.value - second.mean.value, math.hypot(items, seeds) / Z95)


def separated(first: Cell, second: Cell) -> bool:
    """Tell whether the 95 % interval of the difference of two cells leaves out 0."""
    found = contrast(first, second)
    return found.low > 0 or found.high < 0


def leaders(cells: Sequence[Cell | None]) -> set[int]:
    """Return the places of the best cell and of all that are not separated from it."""
    known = [place for place, one in enumerate(cells) if one is not None]
    if not known:
        return set()
    best = max(known, key=lambda place: (cells[place].mean.value, -place))  # type: ignore[union-attr]  # known are not None
    return {best, *(place for place in known if not separated(cells[best], cells[place]))}  # type: ignore[arg-type]  # as above
