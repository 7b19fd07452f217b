"""What contenders run on: evaluations of plans whose tokens are counted, until they are spent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bench.applying.in_memory import realised
from sweeps.candidate import Candidate
from sweeps.meter import Meter
from sweeps.objective import ByWindow
from sweeps.objectives.kl import Kl
from sweeps.planner import LayerPlanner
from sweeps.racing.race_config import Race
from sweeps.resident import Resident, Windows
from sweeps.space.levels import Levels, LevelSpace, Reals


class Spent(Exception):
    """All tokens are spent."""


class Track:
    """One space of one model, with one seed's text."""

    def __init__(self, race: Race, planner: LayerPlanner, resident: Resident, seed: int, folder: Path) -> None:
        """Prepare one seed.

        Args:
            race: its settings.
            planner: plans of the space.
            resident: the model.
            seed: of text and samplers.
            folder: that keeps answers, by what they depend on.
        """
        self.race, self.planner, self.resident, self.seed = race, planner, resident, seed
        self.space: LevelSpace = planner.space({})
        whole, first = race.search_windows(seed), race.first_window(seed)
        self._whole, self._first = self._meter(whole, folder), self._meter(first, folder)
        # Files of token ids may hold another number of windows than is asked for.
        self.cost, self.first_cost = (resident.windows(text).numel() for text in (whole, first))
        self.budget = race.evaluations * self.cost
        self.begin()

    def begin(self) -> None:
        """Begin a run; nothing is known or spent yet."""
        self.tokens = 0.0
        self.evaluations = 0
        self.known: dict[tuple[int, ...], float] = {}
        self.best: tuple[float, tuple[int, ...]] | None = None
        self.curve: list[tuple[float, float]] = []

    def spend(self, tokens: float) -> None:
        """Count tokens.

        Raises:
            Spent: there are not as many left.
        """
        if self.tokens + tokens > self.budget:
            raise Spent
        self.tokens += tokens

    def value(self, levels_A: Levels | Sequence[int], off_budget: bool = False) -> float:
        """Return the objective of an assignment; a second time it costs nothing.

        Args:
            levels_A: a level for each axis.
            off_budget: whether the plan may be above the limit, so that it cannot win.

        Raises:
            Spent: no tokens are left.
        """
        key = tuple(int(level) for level in levels_A)
        if key not in self.known:
            self.spend(self.cost)
            self.evaluations += 1
            self.known[key] = self._scored(self._whole, key)
            fits = not off_budget or self.space.fits(np.array(key))
            if fits and (self.best is None or self.known[key] < self.best[0]):
                self.best = (self.known[key], key)
                self.curve.append((self.tokens, self.known[key]))
        return self.known[key]

    def first(self, levels_A: Levels) -> float:
        """Return the objective on the single window of the first stage.

        Raises:
            Spent: no tokens are left.
        """
        self.spend(self.first_cost)
        return self._scored(self._first, tuple(int(level) for level in levels_A))

    def judged(self, measure: ByWindow) -> Reals:
        """Return what the best plan has on each window of another text, (N,); it is not counted."""
        assert self.best is not None
        drawn = self.planner.at(np.array(self.best[1]), {})
        resident, source = self.resident, self.planner.limits.source
        with realised(resident.model, resident.inventory, drawn.plan, resident.stats, resident.made) as model:
            return measure(Candidate(drawn.plan, drawn.sizes, source, model), slice(None))

    def _meter(self, windows: Windows, folder: Path) -> Meter:
        return Meter(self.resident, {"kl": Kl(kind="kl", windows=windows)}, {"dtype": "float32"}, folder)

    def _scored(self, meter: Meter, levels: tuple[int, ...]) -> float:
        drawn = self.planner.at(np.array(levels), {})
        return meter.measured(drawn.plan, drawn.sizes, self.planner.limits.source).scores["kl"]
