"""RCO: gradients of a relaxed choice that stays on the budget; it proposes plans, which are then measured like others.

Letters: A axes, O options of a unit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from methods.framework.errors import RefusedError
from sweeps.option_slopes import Slopes
from sweeps.samplers.relaxed import chances, retracted, tangent, through_softmax
from sweeps.solving.knapsack import best
from sweeps.space.levels import Levels, LevelSpace, Reals

SlopesAt = Callable[[Levels, int], Slopes]
"""Returns slopes around an assignment, on the text of one step."""

_BETA, _BETA_2 = 0.9, 0.99


@dataclass(frozen=True, slots=True)
class Descent:
    """How the search goes down.

    Args:
        rate: of Adam.
        warm: first temperature of the softmax.
        cold: last one.
    """

    rate: float = 0.2
    warm: float = 1.0
    cold: float = 0.3


class GradientSearch:
    """Descends on softmax(alpha) with the expected size on the budget, exactly.

    A step perturbs alpha with Gumbel noise, takes the assignment with the largest sum of perturbed logits within the budget, and
    lets the gradient of that plan's divergence through as if it were the relaxed one's (straight-through). The gradient is
    projected onto the tangent of the budget, Adam's step is followed by a shift along the sizes back onto it, and the momentum
    is projected again.

    *Source*: arXiv 2605.00649 (RCO). *Differs*: units are layers with their options instead of single experts; the slopes of
    options are those of their outputs on the same input, not of masks.
    """

    def __init__(self, space: LevelSpace, seed: int, steps: int, descent: Descent | None = None) -> None:
        """Begin with the most even choice on the budget.

        Args:
            space: with one limited quantity.
            seed: of the noise.
            steps: over which the temperature falls.
            descent: how.

        Raises:
            RefusedError: none, or several limited quantities.
        """
        if len(space.limits) != 1:
            raise RefusedError("the gradient search needs one budget; name one quantity")
        ((quantity, limit),) = space.limits.items()
        self.space, self.steps, self.descent = space, steps, descent or Descent()
        self.rng = np.random.default_rng(seed)
        self.options = [space.combinations(unit) for unit in range(len(space.units))]
        self._whole = [
            [int(part[one]) for one in own] for part, own in zip(space.sizes[quantity], self.options, strict=True)
        ]
        self.room = math.floor(limit - space.rest[quantity])
        # Sizes as shares of the room, so that steps do not depend on their unit.
        self.sizes: list[Reals] = [np.array(own, dtype=np.float64) / self.room for own in self._whole]
        self.alpha = retracted([np.zeros(len(own)) for own in self.options], self.sizes, self._target)
        self._momentum = [np.zeros(len(own)) for own in self.options]
        self._square = 0.0
        self._done = 0

    def step(self, slopes_at: SlopesAt) -> tuple[Levels, float]:
        """Do one step; return the assignment that was tried, and its divergence on the step's text."""
        share = min(1.0, self._done / max(1, self.steps - 1))
        temperature = self.descent.warm * (self.descent.cold / self.descent.warm) ** share
        noisy = [one + self.rng.gumbel(size=len(one)) for one in self.alpha]
        levels_A = self._best(noisy, 1)[0]
        found = slopes_at(levels_A, self._done)
        chosen = chances([one / temperature for one in noisy])
        slopes = [np.array([grid[one] for one in own]) for grid, own in zip(found.slopes, self.options, strict=True)]
        self.descend(through_softmax(slopes, chosen, temperature))
        return levels_A, found.value

    def descend(self, gradient: Sequence[Reals]) -> None:
        """Move against a gradient with respect to alpha, along the budget."""
        self._done += 1
        along = tangent(gradient, self.alpha, self.sizes)
        squares = float(np.mean(np.concatenate(along) ** 2))
        self._momentum = [_BETA * m + (1 - _BETA) * g for m, g in zip(self._momentum, along, strict=True)]
        self._square = _BETA_2 * self._square + (1 - _BETA_2) * squares
        size = math.sqrt(self._square / (1 - _BETA_2**self._done)) + 1e-30
        rate = self.descent.rate / (1 - _BETA**self._done) / size
        moved = [a - rate * m for a, m in zip(self.alpha, self._momentum, strict=True)]
        self.alpha = retracted(moved, self.sizes, self._target)
        self._momentum = tangent(self._momentum, self.alpha, self.sizes)

    def proposals(self, count: int) -> list[Levels]:
        """Return the most probable assignments within the budget."""
        return self._best([np.log(np.maximum(p_O, 1e-300)) for p_O in chances(self.alpha)], count)

    @property
    def _target(self) -> float:
        """The expected size, in rooms: the budget, or the largest plan where that is smaller."""
        most = sum(float(own.max()) for own in self.sizes)
        least = sum(float(own.min()) for own in self.sizes)
        return min(1.0, least + 0.999 * (most - least))

    def _best(self, scores: Sequence[Reals], count: int) -> list[Levels]:
        damages = [-one for one in scores]
        found = []
        for assignment in best(damages, self._whole, self.room, count, most_room=1 << 14).assignments:
            levels_A = np.zeros_like(self.space.highest)
            for own, options, place in zip(self.space.members, self.options, assignment.levels, strict=True):
                levels_A[list(own)] = options[place]
            found.append(levels_A)
        return found


def searched(search: GradientSearch, slopes_at: SlopesAt, verify: int) -> Iterator[Levels]:
    """Yield plans worth measuring: those that looked best on the way, then the most probable at the end.

    Args:
        search: at its beginning.
        slopes_at: of the text.
        verify: plans of each kind.
    """
    tried: dict[tuple[int, ...], float] = {}
    for _ in range(search.steps):
        levels_A, value = search.step(slopes_at)
        key = tuple(int(level) for level in levels_A)
        tried[key] = min(value, tried.get(key, math.inf))
    yield from search.proposals(verify)
    for key in sorted(tried, key=lambda one: tried[one])[:verify]:
        yield np.array(key, dtype=np.int64)
