"""Numbers as people read them: with their uncertainty, in one unit, with a true minus sign."""

from __future__ import annotations

import math
import re

MINUS = "\N{MINUS SIGN}"
NONE = "\N{EN DASH}"


def known(value: object) -> bool:
    """Tell whether ``value`` is a number that is there: not None, NA or NaN."""
    return isinstance(value, int | float) and not math.isnan(value)


def fixed(value: float | None, digits: int = 1, signed: bool = False) -> str:
    """Return ``value`` with ``digits`` decimals, or a dash where it is missing.

    Args:
        value: any number.
        digits: decimals.
        signed: write a plus before what is above 0.
    """
    if value is None or not known(value):
        return NONE
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", MINUS)


def percent(value: float | None, error: float | None = None, digits: int = 1, signed: bool = False) -> str:
    """Return a fraction of 1 in percent, without the sign %, as ``71.3 ± 1.2`` where ``error`` is known.

    Args:
        value: fraction of 1.
        error: its standard error, in the same unit.
        digits: decimals of the percentage.
        signed: write a plus before what is above 0.
    """
    if value is None or not known(value):
        return NONE
    text = fixed(100 * value, digits, signed)
    return text if error is None or not known(error) else f"{text} ± {fixed(100 * error, digits)}"


def interval(low: float | None, high: float | None, scale: float = 1.0, digits: int = 1, signed: bool = False) -> str:
    """Return ``[low, high]`` times ``scale``, empty where it is missing.

    Args:
        low: lower end.
        high: upper end.
        scale: factor of both, 100 for percent.
        digits: decimals.
        signed: write a plus before what is above 0.
    """
    if low is None or high is None or not known(low) or not known(high):
        return ""
    return f"[{fixed(scale * low, digits, signed)}, {fixed(scale * high, digits, signed)}]"


def significant(value: float | None, digits: int = 3) -> str:
    """Return ``value`` with ``digits`` significant digits and thousands separated, never in scientific notation."""
    if value is None or not known(value):
        return NONE
    if value == 0 or not math.isfinite(value):
        return f"{value:g}".replace("-", MINUS)
    decimals = digits - 1 - math.floor(math.log10(abs(value)))
    return f"{round(value, decimals):,.{max(decimals, 0)}f}".replace("-", MINUS)


def size(value: float | None) -> str:
    """Return bytes in the largest binary unit that leaves at least 1."""
    return _scaled(value, 1024.0, ("B", "KiB", "MiB", "GiB", "TiB"))


def count(value: float | None) -> str:
    """Return a number of parameters or FLOPs with k, M, G, T, P (powers of 1,000)."""
    return _scaled(value, 1000.0, ("", "k", "M", "G", "T", "P"))


def _scaled(value: float | None, step: float, units: tuple[str, ...]) -> str:
    if value is None or not known(value):
        return NONE
    scaled, place = float(value), 0
    while abs(scaled) >= step and place < len(units) - 1:
        scaled, place = scaled / step, place + 1
    number = f"{scaled:.0f}" if place == 0 or scaled >= 100 else significant(scaled)
    return f"{number} {units[place]}".rstrip()


def p_value(value: float | None) -> str:
    """Return a p-value with two significant digits, ``<0.001`` below that."""
    if value is None or not known(value):
        return NONE
    return "<0.001" if value < 0.001 else f"{value:.2g}" if value < 0.1 else f"{value:.2f}"


def slug(name: str) -> str:
    """Return ``name`` in letters that any file system takes."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._") or "model"


def clock_time(seconds: float) -> str:
    """Return seconds as a clock shows them: ``0:07``, ``12:30``, ``3:04:05``."""
    whole = round(seconds)
    hours, rest = divmod(whole, 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
