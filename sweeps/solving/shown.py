"""Solutions as text: the options of all units in one line, and rows of a CSV file."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from sweeps.solving.solve import Curve, Solution
from sweeps.solving.table import Option, Table


def setting(option: Option) -> str:
    """Return the values of an option's settings, in the order of their names, without these."""
    return "/".join(_value(option.settings[name]) for name in sorted(option.settings)) or "-"


def _value(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace(" ", "")


def heading(table: Table) -> str:
    """Return what the values of ``setting`` are, in their order: the names of all settings of the table."""
    names = {name for unit in table.units for option in unit.options for name in option.settings}
    return "/".join(sorted(names)) or "option"


def line(table: Table, levels: Sequence[int]) -> str:
    """Return the options of all units, those of one layer joined by commas, equal neighbours counted: ``6 4x3 8,2``."""
    chosen = zip(table.units, table.chosen(levels), strict=True)
    layers = [
        ",".join(setting(option) for _, option in group) for _, group in groupby(chosen, key=lambda pair: pair[0].layer)
    ]
    runs = [(text, len(list(group))) for text, group in groupby(layers)]
    return " ".join(text if count == 1 else f"{text}x{count}" for text, count in runs)


def shares(table: Table, solution: Solution) -> dict[str, float]:
    """Return the sizes of a solution as shares of the source's; quantities that the source has none of are left out."""
    return {name: solution.sizes[name] / value for name, value in table.source.items() if value}


def rows_as_csv(table: Table, found: Curve) -> str:
    """Return a curve as CSV: share kept, size, predicted damage and objective, and the option of each unit."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    names = [unit.name for unit in table.units]
    writer.writerow(
        [f"{found.quantity}_kept", found.quantity, "predicted_damage", f"predicted_{table.objective}", *names]
    )
    writer.writerows(_rows(table, found))
    return buffer.getvalue()


def _rows(table: Table, found: Curve) -> Iterable[list[Any]]:
    for one in found.solutions:
        size = one.sizes[found.quantity]
        kept = size / table.source[found.quantity] if table.source[found.quantity] else 1.0
        options = [setting(option) for option in table.chosen(one.levels)]
        yield [f"{kept:.6g}", size, repr(one.damage), repr(table.predicted(one.damage)), *options]
