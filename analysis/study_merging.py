"""Merging against selection, beside how alike the experts of each model are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.averaging import SeedAverage
from analysis.drawing import canvas, short
from analysis.formatting import NONE, fixed, interval
from analysis.inference import Difference
from analysis.palette import LIGHT, NEUTRAL, marker, places
from analysis.similarity import Grouping, Likeness, grouping
from analysis.study_cells import AVERAGE, contrast
from analysis.study_layout import Entry, Study, Table
from analysis.table import markdown_cell
from bench.records.record import Record

LEGEND = (
    "Average of the method minus that of the best selection of the same model and share (the method with the highest average of "
    "those that neither merge nor replace experts), points, with a 95 % interval over seeds and items; bold where it leaves "
    "out 0. The best is chosen on the same items, which favours it. *Groups*: mean over layers and seeds."
)


_HEAD = ("model", "similarity", "method", "groups", "minus the best selection", "which is")


@dataclass(frozen=True)
class Merging:
    """One method that merges or replaces experts, on one model at one share, against the best selection.

    Args:
        rival: label of the best selection.
        against: the method's average minus the rival's.
        groups: sizes of its groups; None for a method that replaces experts by a constant.
    """

    model: str
    keep: str
    label: str
    rival: str
    against: Difference
    groups: Grouping | None

    @property
    def separated(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return self.against.low > 0 or self.against.high < 0


def merging(study: Study) -> list[Merging]:
    """Return the methods of each table that merge or replace experts, beside the best that selects."""
    return [one for table in study.tables for one in _of_table(table)]


def _of_table(table: Table) -> list[Merging]:
    """Return them in the order of the table, where the best selection is the first that only selects."""
    rival = next((entry for entry in table.entries if not _changes(entry)), None)
    if rival is None:
        return []
    found = []
    for entry in table.entries:
        own, other = entry.cells[AVERAGE], rival.cells[AVERAGE]
        if _changes(entry) and own is not None and other is not None:
            sizes = grouping(_records(entry))
            found.append(Merging(table.model, table.keep, entry.label, rival.label, contrast(own, other), sizes))
    return found


def _records(entry: Entry) -> list[Record]:
    members = entry.row.members if isinstance(entry.row, SeedAverage) else (entry.row,)
    return [member.record for member in members]


def _changes(entry: Entry) -> bool:
    return any(record.groups or record.replaced for record in _records(entry))


def merging_tables(found: Sequence[Merging], alike: Sequence[Likeness]) -> list[str]:
    """Return the Markdown table of each share: a line for each model and method, models by how alike their experts are."""
    means = {one.model: one for one in reversed(alike)}
    parts = []
    for keep in dict.fromkeys(one.keep for one in found):
        lines = []
        for one in sorted((one for one in found if one.keep == keep), key=lambda one: _place(one, means)):
            gap = f"{fixed(100 * one.against.value, signed=True)} {interval(one.against.low, one.against.high, 100, signed=True)}"
            known = fixed(means[one.model].overall.value, 2) if one.model in means else NONE
            sizes = one.groups.told if one.groups else "replaced, not merged"
            told = f"**{gap}**" if one.separated else gap
            lines.append((*map(markdown_cell, (one.model, known, one.label, sizes)), told, markdown_cell(one.rival)))
        rows = (_HEAD, ("---",) * len(_HEAD), *lines)
        parts += [f"### keep {markdown_cell(keep)}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return parts


def _place(one: Merging, means: dict[str, Likeness]) -> tuple[float, str, float]:
    return (means[one.model].overall.value if one.model in means else 2.0, one.model, -one.against.value)


def merging_figure(found: Sequence[Merging], alike: Sequence[Likeness]) -> Any:
    """Draw every difference with its interval, models from left to right by how alike their experts are; None for one model."""
    means = {one.model: one.overall.value for one in reversed(alike)}
    models = sorted({one.model for one in found if one.model in means}, key=lambda name: (means[name], name))
    if len(models) < 2:
        return None
    keeps = list(dict.fromkeys(one.keep for one in found))
    methods = places(one.label for one in found)
    figure = canvas(8.6, 0.6 + 2.9 * len(keeps))
    panels = figure.subplots(len(keeps), 1, squeeze=False, sharex=True)[:, 0]
    for axes, keep in zip(panels, keeps, strict=True):
        for one in found:
            if one.keep != keep or one.model not in means:
                continue
            place = methods[one.label]
            axes.errorbar(
                models.index(one.model) + 0.7 * ((place + 0.5) / len(methods) - 0.5),
                100 * one.against.value,
                yerr=[[100 * one.against.below], [100 * one.against.above]],
                color=LIGHT[place % len(LIGHT)],
                marker=marker(place),
                mfc=LIGHT[place % len(LIGHT)] if one.separated else "white",
                ms=5,
                lw=0,
                elinewidth=0.9,
                capsize=2,
                label=one.label,
            )
        axes.axhline(0.0, color=NEUTRAL, lw=0.9)
        axes.set_title(f"keep {keep}")
        axes.set_ylabel("points")
        axes.grid(False, axis="x")
    names = [f"{short(name, 24)}\nsimilarity {fixed(means[name], 2)}" for name in models]
    panels[-1].set_xticks(range(len(models)), names, fontsize=8)
    legend = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([legend[name] for name in sorted(legend)], sorted(legend), loc="outside right upper", fontsize=7.5)
    figure.suptitle(
        "Average minus the best selection's, 95 % interval; filled: it leaves out 0",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    return figure
