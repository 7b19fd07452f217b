"""Mixtures of corpora: sources with shares of the windows, as a list in YAML and as one line everywhere else.

The line is ``source=share,source=share``; it stands in settings, on the command line and in records.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator

_PART = re.compile(r"(.+?)=(\d*\.?\d+(?:[eE]-?\d+)?)(?:,|$)")
_FORM = "{corpus: SOURCE, share: 0.5}"


def shares_of(line: str) -> tuple[tuple[str, float], ...]:
    """Return the sources of a mixture with their shares, in order; nothing where ``line`` is no mixture.

    Raises:
        ValueError: the shares are not positive numbers that sum to 1.
    """
    parts: list[tuple[str, float]] = []
    place = 0
    while place < len(line):
        found = _PART.match(line, place)
        if found is None:
            return ()
        parts.append((found[1].strip(), float(found[2])))
        place = found.end()
    total = math.fsum(share for _, share in parts)
    if parts and not (min(share for _, share in parts) > 0 and abs(total - 1) < 1e-6):
        raise ValueError(
            f"corpus {line!r}: the shares {', '.join(f'{share:g}' for _, share in parts)} sum to {total:g}; allowed: positive "
            "shares that sum to 1"
        )
    return tuple(parts)


def windows_of(shares: Sequence[float], sequences: int) -> list[int]:
    """Return how many of ``sequences`` windows each share gets: rounded down, then one each by the largest remainders."""
    exact = [share * sequences for share in shares]
    counts = [math.floor(one + 1e-9) for one in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: (counts[index] - exact[index], index))
    for index in by_remainder[: sequences - sum(counts)]:
        counts[index] += 1
    return counts


def one_line(value: Any) -> Any:
    """Return a mixture that was given as a list as its line, and anything else as it is.

    Raises:
        ValueError: an entry is not a source with a share, or its name cannot stand in a line.
    """
    if not isinstance(value, list | tuple):
        return value
    parts: list[tuple[str, float]] = []
    for entry in value:
        share = entry.get("share") if isinstance(entry, Mapping) and set(entry) == {"corpus", "share"} else None
        if isinstance(share, bool) or not isinstance(share, int | float) or not isinstance(entry["corpus"], str):
            raise ValueError(f"a mixture is a list of {_FORM}, found {str(entry)[:80]}")
        parts.append((entry["corpus"].strip(), float(share)))
    if any(not 0 < share <= 1 for _, share in parts):
        raise ValueError(f"shares of a mixture are above 0 and at most 1, found {[share for _, share in parts]}")
    line = ",".join(f"{source}={share!r}" for source, share in parts)
    if shares_of(line) != tuple(parts) or not parts:
        raise ValueError(
            f"the sources of the mixture {[source for source, _ in parts]} cannot be told apart in one line; "
            "name at least one, and none with =NUMBER in it"
        )
    return line


CorpusLine = Annotated[str, BeforeValidator(one_line)]
"""A corpus in settings: a source, several joined by +, or a mixture as a line or list."""
