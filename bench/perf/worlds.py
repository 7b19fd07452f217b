"""Random tables of damages and sizes, of the sorts that searches meet and of some that are meant to be hard.

Every function takes a generator, the number of units and that of options, and returns damages and sizes of each unit (O,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np

World: TypeAlias = tuple[list[Any], list[Any]]


def _falling(rng: np.random.Generator, options: int) -> Any:
    """Return damages that fall unevenly to about 0, as much as the unit is worth."""
    return rng.gamma(1.0) * np.sort(rng.random(options) ** 2)[::-1]


def experts(rng: np.random.Generator, units: int, options: int) -> World:
    """Return experts kept: sizes are multiples of one expert's bytes.

    Args:
        rng: source of the numbers.
        units: rows of the table.
        options: of each unit.
    """
    return [_falling(rng, options) for _ in range(units)], [np.arange(1, options + 1) * 12_582_912] * units


def odd_bytes(rng: np.random.Generator, units: int, options: int) -> World:
    """Return sizes without a common divisor and damages that do not always fall.

    Args:
        rng: source of the numbers.
        units: rows of the table.
        options: of each unit.
    """
    damages = [_falling(rng, options) + 0.01 * rng.normal(size=options) for _ in range(units)]
    return damages, [np.sort(rng.integers(10**8, 2 * 10**9, options)) for _ in range(units)]


def smooth(rng: np.random.Generator, units: int, options: int) -> World:
    """Return the same odd sizes in every unit, with damages that fall quadratically: many plans are almost equal.

    Args:
        rng: source of the numbers.
        units: rows of the table.
        options: of each unit.
    """
    sizes = np.sort(rng.integers(10**8, 2 * 10**9, options))
    gone = 1 - (sizes - sizes[0]) / (sizes[-1] - sizes[0])
    return [rng.gamma(1.0) * gone**2 for _ in range(units)], [sizes] * units


def noise(rng: np.random.Generator, units: int, options: int) -> World:
    """Return sizes up to 1e11 and damages of either sign, in any order.

    Args:
        rng: source of the numbers.
        units: rows of the table.
        options: of each unit.
    """
    damages = [rng.normal(size=options) for _ in range(units)]
    return damages, [rng.integers(1, 10**11, options) for _ in range(units)]


def levels(rng: np.random.Generator, units: int, options: int) -> World:
    """Return small whole sizes and damages, with many ties.

    Args:
        rng: source of the numbers.
        units: rows of the table.
        options: of each unit.
    """
    damages = [rng.integers(0, 50, options).astype(np.float64) for _ in range(units)]
    return damages, [rng.integers(1, 400, options) for _ in range(units)]


WORLDS: Mapping[str, Callable[[np.random.Generator, int, int], World]] = {
    "experts": experts,
    "odd_bytes": odd_bytes,
    "smooth": smooth,
    "noise": noise,
    "levels": levels,
}
"""By name."""
