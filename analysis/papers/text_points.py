"""Points of a curve that a paper tells in its text, each beside what was measured where as much is dropped."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.formatting import NONE, fixed, interval
from analysis.papers.filling import Cell, Filled, Row
from analysis.papers.sheet import TextPoint


def point_lines(points: Sequence[TextPoint], blocks: Sequence[Filled]) -> list[list[str]]:
    """Return a line for each point: what the text tells, and the mean of the tasks here.

    Args:
        points: of a figure.
        blocks: its models, filled.
    """
    lines = []
    for point in points:
        for filled in blocks:
            if filled.block.title == point.model:
                lines.append([f"{point.model}, {point.words}", point.printed, *_here(point, filled)])
    return lines


def _here(point: TextPoint, filled: Filled) -> tuple[str, str, str]:
    """Return how many are dropped here, the change of the mean, and the share of the mean that is left.

    Args:
        point: that the text tells.
        filled: the model in its place.
    """
    column = filled.block.mean(paper=False)
    name = column.name if column is not None else ""
    base = next((row for row in filled.rows if row.line.method is None), None)
    row = next((one for one in filled.rows if _is_at(point, one)), None)
    cell, whole = (Cell() if one is None else one.cells.get(name, Cell()) for one in (row, base))
    gap = cell.difference
    change = NONE if gap is None else f"{fixed(gap.value, 1, True)} {interval(gap.low, gap.high, signed=True)}"
    left = None if cell.ours is None or not whole.ours else 100 * cell.ours / whole.ours
    return f"{point.x:g}", change, fixed(left, 1)


def _is_at(point: TextPoint, row: Row) -> bool:
    return row.line.method is not None and row.line.label == point.series and row.line.x == point.x
