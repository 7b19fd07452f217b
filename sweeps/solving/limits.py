"""Budgets as users write them: ``bytes=0.5`` (a share of the source's), ``bytes=50%``, ``bytes=12GB``, ``experts=96``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction

from methods.framework.errors import ConfigError, UnknownNameError

_THOUSANDS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "B": 10**9, "T": 10**12}
_BYTES = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate(("k", "M", "G", "T"), 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate(("K", "M", "G", "T"), 1)},
}
_SECONDS = {"": 1, "us": 1, "ms": 10**3, "s": 10**6}
_PATTERN = re.compile(r"(?P<number>\d+(?:\.\d+)?|\.\d+)\s*(?P<unit>[A-Za-z]*|%)")


@dataclass(frozen=True, slots=True)
class Limit:
    """The most of one quantity that a plan may have.

    Args:
        quantity: what is limited.
        share: largest share of the source's, in (0, 1]; None where ``amount`` is given.
        amount: largest value; None where ``share`` is given.
        text: the limit as it was written.
    """

    quantity: str
    share: Fraction | None
    amount: int | None
    text: str

    def of(self, source: Mapping[str, int]) -> int:
        """Return the largest value that is allowed beside a source of these sizes."""
        if self.amount is not None:
            return self.amount
        assert self.share is not None
        return int(self.share * source[self.quantity])


def parse_limit(text: str, quantities: Iterable[str]) -> Limit:
    """Return the limit that ``text`` states.

    A number up to 1 is a share, one with a percent sign too; larger numbers, and those with a unit, are values.

    Args:
        text: ``quantity=number``, the number perhaps with a unit or a percent sign.
        quantities: those that exist.

    Raises:
        ConfigError: it is none, names an unknown quantity or unit, or is not positive.
    """
    name, sign, number = (part.strip() for part in text.partition("="))
    if not sign:
        raise ConfigError(f"budget {text!r} is not of the form quantity=number: bytes=0.5, bytes=12GB")
    known = sorted(quantities)
    if name not in known:
        raise UnknownNameError("quantity of a budget", name, known)
    units = _BYTES if name == "bytes" else _SECONDS if name.endswith("microseconds") else _THOUSANDS
    match = _PATTERN.fullmatch(number)
    if match is None or match["unit"] not in {*units, "%"}:
        shown = ", ".join(unit for unit in units if unit)
        raise ConfigError(
            f"budget {text!r}: give a share up to 1, a percentage, or a number with one of the units {shown}"
        )
    value, unit = Fraction(match["number"]), match["unit"]
    share = value / 100 if unit == "%" else value
    is_share = unit == "%" or (not unit and share <= 1)
    if share <= 0 or (is_share and share > 1):
        raise ConfigError(f"budget {text!r}: a share lies above 0 and at most at 1 (100%), a value above 0")
    if is_share:
        return Limit(name, share, None, f"{name}={number}")
    return Limit(name, None, int(value * units[unit]), f"{name}={number}")
