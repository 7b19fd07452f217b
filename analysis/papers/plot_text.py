"""The section of a plot on a paper's page: the picture, its caption, and what differs from the paper."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

from analysis.formatting import fixed
from analysis.papers.sheet import Sheet
from analysis.papers.tables import BESIDE, opening
from analysis.table import markdown_cell
from bench.records.derived import csv_cell


def plot_section(sheet: Sheet, caption: Sequence[str], missing: Sequence[str], picture: str | None) -> str:
    """Return a section in Markdown.

    Args:
        sheet: what the figure is; its blocks are not read.
        caption: sentences about what was measured: texts, items, seeds, intervals.
        missing: one sentence for each thing that is not there.
        picture: address of the figure; None where there is none.
    """
    parts = opening(sheet, f"{sheet.title}, after {sheet.source}.")
    if picture is not None:
        values = picture.rsplit(".", 1)[0] + ".csv"
        told = f"All values: [{values.removeprefix(BESIDE)}]({values})."
        parts += [f"![{sheet.title}]({picture})", " ".join([*caption, told])]
    for words, sentences in (
        ("Lost", () if sheet.beside else sheet.lost),
        ("How this differs from the paper", [text for text in sheet.departs if text not in sheet.said]),
        ("Left open by the paper", () if sheet.beside else sheet.untold),
        ("Not here", missing),
    ):
        if listed := [f"- {markdown_cell(text)}" for text in dict.fromkeys(sentences)]:
            parts.append(f"{words}:\n\n" + "\n".join(listed))
    return "\n\n".join(parts) + "\n"


def plot_csv(heads: Sequence[str], lines: Iterable[Sequence[Any]]) -> bytes:
    """Return the numbers of a plot as CSV, six significant digits each.

    Args:
        heads: names of the columns.
        lines: one sequence of values a line; None is an empty cell.
    """
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(heads)
    for line in lines:
        writer.writerow([_text(value) for value in line])
    return buffer.getvalue().encode()


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else csv_cell(str(value))


def interval_words(low: float, high: float, digits: int = 2) -> str:
    """Return ``low`` to ``high`` in words, one number where they agree.

    Args:
        low: the smaller one.
        high: the larger one.
        digits: decimals of both.
    """
    ends = fixed(low, digits), fixed(high, digits)
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
