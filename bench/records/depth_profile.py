"""A value for each layer in few words, where a line has no room for the list; records keep it whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence

LONGEST = 8
"""Numbers that are listed one by one."""


def depth_profile(values: Sequence[object], number: Callable[[float], str] = "{:.3g}".format) -> str | None:
    """Return a long list of numbers as ``0.75 by layer (0.5 to 1)``, mean and range; None for other lists.

    Args:
        values: of a knob, one a layer or matrix.
        number: writes one of them.
    """
    numbers = [float(one) for one in values if isinstance(one, (int, float)) and not isinstance(one, bool)]
    if len(numbers) <= LONGEST or len(numbers) < len(values):
        return None
    mean = number(float(f"{sum(numbers) / len(numbers):.3g}"))
    return f"{mean} by layer ({number(min(numbers))} to {number(max(numbers))})"
