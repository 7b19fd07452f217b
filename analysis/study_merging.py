"""Merging against selection, beside how alike the experts of each model are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.averaging import SeedAverage
from analysis.drawing import canvas, short
from analysis.formatting import MINUS, NONE, fixed, interval
from analysis.inference import Difference
from analysis.palette import LIGHT, NEUTRAL, marker, places
from analysis.similarity import Grouping, Likeness, grouping
from analysis.study_cells import AVERAGE, Cell, contrast, perplexity_cell
from analysis.study_layout import Entry, Study, Table
from analysis.table import markdown_cell
from bench.records.record import Record

LEGEND = (
    "The method against the best selection of the same model and share: of those that neither merge nor replace experts, the "
    "one with the highest average, or the lowest perplexity. *Average*: difference in points. *Perplexity*: how much lower it is "
    "than the best selection's, % of the latter; above 0 merging is better. 95 % intervals over seeds and items, bold where they "
    "leave out 0. The best selection is chosen on the same items, which favours it. *Groups*: means over layers and seeds."
)
MEASURES = ("average", "perplexity")
"""What methods are compared by; more is better in both."""

_HEAD = ("model", "similarity", "method", "groups", "average", "best selection", "perplexity", "best selection")
_AXES = {"average": "points of the average", "perplexity": "perplexity, % lower"}


@dataclass(frozen=True)
class Rivalry:
    """One method against the best selection, by one measure.

    Args:
        rival: label of the best selection.
        against: the method minus the rival, in percent.
    """

    rival: str
    against: Difference

    @property
    def separated(self) -> bool:
        """Whether the interval of the difference leaves out 0."""
        return self.against.low > 0 or self.against.high < 0

    @property
    def told(self) -> str:
        """The difference with its interval, bold where it is separated."""
        ends = interval(self.against.low, self.against.high, signed=True)
        text = f"{fixed(self.against.value, signed=True)} {ends}"
        return f"**{text}**" if self.separated else text


@dataclass(frozen=True)
class Merging:
    """One method that merges or replaces experts, on one model at one share.

    Args:
        by: its rivalry by each of ``MEASURES`` that was taken.
        groups: sizes of its groups; None for a method that replaces experts by a constant.
    """

    model: str
    keep: str
    label: str
    by: Mapping[str, Rivalry]
    groups: Grouping | None


def merging(study: Study) -> list[Merging]:
    """Return the methods of each table that merge or replace experts, beside the best that selects."""
    return [one for table in study.tables for one in _of_table(table)]


def _of_table(table: Table) -> list[Merging]:
    found: dict[str, dict[str, Rivalry]] = {entry.label: {} for entry in table.entries if _changes(entry)}
    for measure in MEASURES:
        cells = {entry.label: own for entry in table.entries if (own := _CELLS[measure](entry)) is not None}
        selecting = [entry.label for entry in table.entries if entry.label in cells and not _changes(entry)]
        if not selecting:
            continue
        rival = max(selecting, key=lambda label: cells[label].mean.value)
        for label, by in found.items():
            if label in cells:
                by[measure] = Rivalry(rival, _percent(contrast(cells[label], cells[rival]), measure))
    return [
        Merging(table.model, table.keep, entry.label, found[entry.label], grouping(_records(entry)))
        for entry in table.entries
        if found.get(entry.label)
    ]


_CELLS: Mapping[str, Callable[[Entry], Cell | None]] = {
    "average": lambda entry: entry.cells[AVERAGE],
    "perplexity": lambda entry: perplexity_cell(entry.row),
}


def _percent(gap: Difference, measure: str) -> Difference:
    """Return a difference in percent; one of logarithms of perplexity as the share by which the perplexity is lower."""

    def scaled(value: float) -> float:
        return 100 * value if measure == "average" else -100 * math.expm1(-value)

    return Difference(scaled(gap.value), scaled(gap.low), scaled(gap.high), gap.p)


def _records(entry: Entry) -> list[Record]:
    members = entry.row.members if isinstance(entry.row, SeedAverage) else (entry.row,)
    return [member.record for member in members]


def _changes(entry: Entry) -> bool:
    return any(record.groups or record.replaced for record in _records(entry))


def merging_tables(found: Sequence[Merging], alike: Sequence[Likeness]) -> list[str]:
    """Return the Markdown table of each share: a line for each model and method, models by how alike their experts are."""
    means = _means(alike)
    parts = []
    for keep in dict.fromkeys(one.keep for one in found):
        lines = []
        for one in sorted(
            (one for one in found if one.keep == keep), key=lambda one: (means.get(one.model, 2), one.model)
        ):
            known = fixed(means[one.model], 2) if one.model in means else NONE
            sizes = one.groups.told if one.groups else "replaced, not merged"
            texts = [markdown_cell(text) for text in (one.model, known, one.label, sizes)]
            for measure in MEASURES:
                rivalry = one.by.get(measure)
                texts += [rivalry.told, markdown_cell(rivalry.rival)] if rivalry else [NONE, NONE]
            lines.append(texts)
        rows = (_HEAD, ("---",) * len(_HEAD), *lines)
        parts += [f"### keep {markdown_cell(keep)}", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
    return parts


def _means(alike: Sequence[Likeness]) -> dict[str, float]:
    """Return how alike the experts of each model are, by the first statistic that was measured."""
    return {one.model: one.overall.value for one in reversed(alike)}


def merging_figure(found: Sequence[Merging], alike: Sequence[Likeness]) -> Any:
    """Draw every difference with its interval, models from left to right by how alike their experts are; None for one model.

    Args:
        found: merging against selection.
        alike: how alike the experts of the models are.
    """
    means = _means(alike)
    shown = [one for one in found if one.model in means]
    models = sorted({one.model for one in shown}, key=lambda name: (means[name], name))
    if len(models) < 2:
        return None
    keeps = list(dict.fromkeys(one.keep for one in shown))
    measures = [measure for measure in MEASURES if any(measure in one.by for one in shown)]
    methods = places(one.label for one in shown)
    figure = canvas(2.4 + 5.0 * len(measures), 0.7 + 2.5 * len(keeps))
    panels = figure.subplots(len(keeps), len(measures), squeeze=False, sharex=True)
    for row, keep in zip(panels, keeps, strict=True):
        for axes, measure in zip(row, measures, strict=True):
            _panel(axes, [one for one in shown if one.keep == keep and measure in one.by], measure, models, methods)
            axes.set_title(f"keep {keep}")
    names = [f"{short(name, 24)}\nsimilarity {fixed(means[name], 2)}" for name in models]
    for axes in panels[-1]:
        axes.set_xticks(range(len(models)), names, fontsize=7)
    handles = [axes.get_legend_handles_labels() for axes in panels.flat]
    legend = {label: handle for some, labels in handles for handle, label in zip(some, labels, strict=True)}
    figure.legend([legend[name] for name in sorted(legend)], sorted(legend), loc="outside right upper", fontsize=7.5)
    figure.suptitle(
        "Merging and replacing against the best selection, 95 % interval; filled: it leaves out 0",
        x=0.01,
        ha="left",
        fontsize=10,
        fontweight="bold",
    )
    return figure


def _panel(axes: Any, some: Sequence[Merging], measure: str, models: Sequence[str], methods: Mapping[str, int]) -> None:
    for one in some:
        place, gap = methods[one.label], one.by[measure].against
        colour = LIGHT[place % len(LIGHT)]
        axes.errorbar(
            models.index(one.model) + 0.7 * ((place + 0.5) / len(methods) - 0.5),
            gap.value,
            yerr=[[gap.below], [gap.above]],
            color=colour,
            marker=marker(place),
            mfc=colour if one.by[measure].separated else "white",
            ms=5,
            lw=0,
            elinewidth=0.9,
            capsize=2,
            label=one.label,
        )
    axes.axhline(0.0, color=NEUTRAL, lw=0.9)
    if measure == "perplexity":  # some methods multiply it
        axes.set_yscale("symlog", linthresh=10)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", MINUS))
    axes.set_ylabel(_AXES[measure])
    axes.grid(False, axis="x")
