"""Who wins: medians over seeds, and differences to one contender with intervals over seeds and windows.

Letters: S seeds, N windows, B draws of the bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sweeps.racing.rows import Row
from sweeps.space.levels import Reals

_DRAWS = 4000


@dataclass(frozen=True, slots=True)
class Standing:
    """One contender on one model and space.

    Args:
        contender: its name.
        seeds: runs.
        search: median over seeds of the divergence on the text of the search.
        held_out: median over seeds of that on held-out text.
        more: by how much it is above the reference on held-out text, as a share; the mean of paired runs, in logarithms.
        low: lower end of the 95 % interval of ``more``.
        high: upper end.
    """

    contender: str
    seeds: int
    search: float
    held_out: float
    more: float
    low: float
    high: float

    @property
    def worse(self) -> bool:
        """Whether it is above the reference, separated from it."""
        return self.low > 0

    @property
    def better(self) -> bool:
        """Whether it is below the reference, separated from it."""
        return self.high < 0


def grouped(rows: Sequence[Row]) -> dict[tuple[str, str], dict[str, dict[int, Row]]]:
    """Return rows by race and model, then by contender, then by seed."""
    found: dict[tuple[str, str], dict[str, dict[int, Row]]] = {}
    for row in rows:
        found.setdefault((row.race, row.model), {}).setdefault(row.contender, {})[row.seed] = row
    return found


def standings(group: Mapping[str, Mapping[int, Row]], reference: str) -> list[Standing]:
    """Return all contenders of one race and model, the best median first.

    Args:
        group: rows by contender and seed.
        reference: contender that all are compared with, on the seeds that both have.
    """
    found = []
    for contender, own in group.items():
        against = group.get(reference, {})
        seeds = sorted(set(own) & set(against))
        mine = np.array([own[seed].windows_N for seed in seeds])
        other = np.array([against[seed].windows_N for seed in seeds])
        more, low, high = _compared(mine, other) if seeds else (np.nan, np.nan, np.nan)
        search = float(np.median([row.search for row in own.values()]))
        held_out = float(np.median([row.held_out for row in own.values()]))
        found.append(Standing(contender, len(own), search, held_out, more, low, high))
    return sorted(found, key=lambda one: one.held_out)


def _compared(mine_SN: Reals, other_SN: Reals) -> tuple[float, float, float]:
    """Return exp(mean over seeds of log of the ratio of means over windows) - 1, and its 95 % interval.

    Seeds and windows are drawn anew together, the same for both contenders; windows are the same text in every run.
    """

    def ratio(mine: Reals, other: Reals) -> float:
        return float(np.exp(np.mean(np.log(mine.mean(axis=1)) - np.log(other.mean(axis=1)))) - 1.0)

    rng = np.random.default_rng(0)
    seeds, windows = mine_SN.shape
    draws = []
    for _ in range(_DRAWS):
        rows, columns = rng.integers(seeds, size=seeds), rng.integers(windows, size=windows)
        draws.append(ratio(mine_SN[rows][:, columns], other_SN[rows][:, columns]))
    low, high = np.quantile(draws, [0.025, 0.975])
    return ratio(mine_SN, other_SN), float(low), float(high)
