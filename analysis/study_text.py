"""The sentences and Markdown tables of a study's page, made from its numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from analysis.averaging import SeedAverage
from analysis.digest import table as markdown_table
from analysis.formatting import NONE, fixed, percent
from analysis.provenance import Block
from analysis.study_cells import AVERAGE, Cell, contrast, separated
from analysis.study_domains import Matrix
from analysis.study_layout import Entry, Study, Table
from analysis.table import markdown_cell

_NAMED = 4
"""Methods named in one sentence; more are counted."""


def cell_text(cell: Cell | None) -> str:
    """Return a mean in percent with half of its interval over seeds; without one where there is one seed."""
    if cell is None:
        return NONE
    text = percent(cell.mean.value)
    return text if cell.mean.half is None else f"{text} ± {fixed(100 * cell.mean.half)}"


def score_table(table: Table, study: Study) -> str:
    """Return the Markdown table of one model at one share: base on top, what leads a column in bold."""
    heads = ("method", "seeds", "average", *(study.short[task] for task in table.columns[1:]))
    lines = []
    if table.base is not None:
        lines.append(["uncompressed", NONE, *(cell_text(table.base.cells.get(column)) for column in table.columns)])
    for place, entry in enumerate(table.entries):
        texts = []
        for column in table.columns:
            text = cell_text(entry.cells.get(column))
            texts.append(f"**{text}**" if _bold(table, column, place) else text)
        lines.append([markdown_cell(entry.label), _seeds(entry), *texts])
    rule = ["---", *("---:" for _ in heads[1:])]
    return "\n".join("| " + " | ".join(line) + " |" for line in [[markdown_cell(h) for h in heads], rule, *lines])


def _bold(table: Table, column: str, place: int) -> bool:
    """Bold the leading group, unless it is everyone."""
    leading = table.leading[column]
    return place in leading and (len(leading) < len(table.entries) or len(table.entries) == 1)


def _seeds(entry: Entry) -> str:
    own = entry.cells[AVERAGE]
    return NONE if own is None or own.seedless else str(own.mean.n)


def winner(table: Table) -> str:
    """Return one sentence: who has the best average, and from whom it is not separated."""
    if not table.entries:
        return "No method completed."
    best = table.entries[0]
    top = best.cells[AVERAGE]
    assert top is not None
    told = f"**{markdown_cell(best.label)}** has the highest average, {cell_text(top)} %"
    if len(table.entries) == 1:
        return f"{told}; no other method completed."
    leading = table.leading[AVERAGE] - {0}
    if not leading:
        second = table.entries[1]
        gap = contrast(top, _cell(second))
        ends = f"[{fixed(100 * gap.low, signed=True)}, {fixed(100 * gap.high, signed=True)}]"
        return (
            f"{told}, and is separated from every other: {fixed(100 * gap.value, signed=True)} points {ends} "
            f"over {markdown_cell(second.label)}."
        )
    if len(leading) == len(table.entries) - 1:
        return f"{told}, but nothing is separated from it: none of {len(table.entries)} methods can be called the best."
    names = [table.entries[place].label for place in sorted(leading)]
    return f"{told}; not separated from it: {listed(names)} ({len(leading) + 1} of {len(table.entries)} methods lead)."


def _cell(entry: Entry) -> Cell:
    found = entry.cells[AVERAGE]
    assert found is not None
    return found


def listed(names: Sequence[str]) -> str:
    """Return names in words, the first few of many."""
    shown = [markdown_cell(name) for name in names[:_NAMED]]
    more = len(names) - len(shown)
    if more:
        return f"{', '.join(shown)} and {more} more"
    return " and ".join([", ".join(shown[:-1]), shown[-1]]) if len(shown) > 1 else "".join(shown)


def task_winners(table: Table, study: Study) -> str:
    """Return one sentence that names the tasks with a single best method."""
    alone = [
        f"{study.short[task]} ({markdown_cell(table.entries[next(iter(table.leading[task]))].label)})"
        for task in table.columns[1:]
        if len(table.leading[task]) == 1 and len(table.entries) > 1
    ]
    if not alone:
        return "No task has a single best method."
    return f"Tasks with a single best method: {', '.join(alone)}."


def against(table: Table, method: str = "random") -> str:
    """Return one sentence on how many methods are separated from the control, and on which side."""
    controls = [entry for entry in table.entries if entry.method == method]
    if not controls:
        return ""
    control = _cell(controls[0])
    others = [entry for entry in table.entries if entry.method != method]
    above = [entry for entry in others if contrast(_cell(entry), control).low > 0]
    below = [entry for entry in others if contrast(_cell(entry), control).high < 0]
    worse = f" ({listed([entry.label for entry in below])})" if below else ""
    return (
        f"Separated from the random control: {len(above)} of {len(others)} methods for the better, {len(below)} for the "
        f"worse{worse}."
    )


def twins(table: Table) -> str:
    """Return one sentence that names the methods whose plans are the same with every seed."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for entry in table.entries:
        rows = entry.row.members if isinstance(entry.row, SeedAverage) else (entry.row,)
        plans = tuple(sorted((str(row.seeds), row.record.plan or row.record.id) for row in rows))
        groups.setdefault(plans, []).append(entry.label)
    same = [" = ".join(map(markdown_cell, group)) for group in groups.values() if len(group) > 1]
    return f"The same decisions with every seed: {'; '.join(same)}." if same else ""


@dataclass
class _Tally:
    """A method over all cells: its ranks by average, and in how many cells it leads or is separated from random."""

    label: str
    ranks: list[float] = field(default_factory=list)
    leads: int = 0
    better: int = 0
    worse: int = 0


def _tallies(study: Study) -> list[_Tally]:
    """Return the methods, those with most cells first, then by mean rank."""
    found: dict[str, _Tally] = {}
    for table in study.tables:
        values = [_cell(entry).mean.value for entry in table.entries]
        controls = [_cell(entry) for entry in table.entries if entry.method == "random"]
        for place, entry in enumerate(table.entries):
            own = found.setdefault(entry.label, _Tally(entry.label))
            above = sum(value > values[place] for value in values)
            equal = sum(value == values[place] for value in values)
            own.ranks.append(above + (equal + 1) / 2)
            own.leads += place in table.leading[AVERAGE]
            if controls and entry.method != "random":
                gap = contrast(_cell(entry), controls[0])
                own.better += gap.low > 0
                own.worse += gap.high < 0
    return sorted(found.values(), key=lambda one: (-len(one.ranks), _mean(one.ranks), one.label))


def rank_block(study: Study) -> tuple[str, list[str]]:
    """Return the table of mean ranks over models and shares, and the sentences that put it in its place."""
    lines = [
        (
            one.label,
            fixed(_mean(one.ranks)),
            f"{min(one.ranks):g} to {max(one.ranks):g}",
            str(len(one.ranks)),
            str(one.leads),
            str(one.better),
            str(one.worse),
        )
        for one in _tallies(study)
    ]
    heads = ("method", "mean rank", "ranks", "cells", "leads", "better than random", "worse than random")
    return markdown_table(Block("", heads, tuple(lines))), _caveats(study)


def steady(study: Study) -> list[str]:
    """Return who leads in most cells, and who is separated from the random control in most, in words."""
    tallies, cells = _tallies(study), len(study.tables)
    if len(tallies) < 2:
        return []
    most = max(one.leads for one in tallies)
    front = listed([one.label for one in tallies if one.leads == most])
    told = [f"Most often among the best: {front}, in {most} of {cells} cells."]
    better = max(one.better for one in tallies)
    if better:
        names = listed([one.label for one in tallies if one.better == better])
        told.append(
            f"Most often separated from the random control for the better: {names}, in {better} of {cells} cells."
        )
    worse = [f"{markdown_cell(one.label)} ({one.worse})" for one in tallies if one.worse]
    if worse:
        told.append(f"Worse than the random control somewhere, with the number of cells: {', '.join(worse)}.")
    return told


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _caveats(study: Study) -> list[str]:
    tables = [table for table in study.tables if len(table.entries) > 1]
    single = sum(len(table.leading[AVERAGE]) == 1 for table in tables)
    nobody = sum(len(table.leading[AVERAGE]) == len(table.entries) for table in tables)
    pairs = [
        separated(_cell(first), _cell(second)) for table in tables for first, second in combinations(table.entries, 2)
    ]
    cells = [table.leading[task] for table in tables for task in table.columns[1:]]
    share = f"{100 * sum(pairs) / len(pairs):.0f} %" if pairs else NONE
    return [
        f"Of {len(tables)} cells (model and share), {single} have a winner that is separated from all others; in {nobody} "
        "nothing is separated from the first.",
        f"Of {len(pairs)} pairs of methods in the same cell, {sum(pairs)} ({share}) are separated on the average.",
        f"Of {len(cells)} combinations of model, share and task, {sum(len(one) == 1 for one in cells)} have a single best "
        "method.",
        "A mean rank counts a gap of a hundredth of a point like one of twenty. It says who tends to be in front, not by "
        "how much, and says nothing where cells are not separated. There is no correction for the number of comparisons: "
        "of the pairs that are equal in truth, up to one in twenty is separated by chance, and the best of many is chosen "
        "after the fact.",
    ]


def domain_table(matrix: Matrix, study: Study) -> str:
    """Return the Markdown table of one model: change in points by calibration domain and task."""
    heads = ("calibrated on", *(study.short[task] for task in matrix.tasks), "own", "others")
    lines = []
    for domain in matrix.domains:
        changes = [matrix.change(domain, task) for task in matrix.tasks]
        own, others = matrix.home(domain), matrix.away(domain)
        texts = [fixed(None if value is None else 100 * value, signed=True) for value in (*changes, own, others)]
        lines.append((domain, *texts))
    return markdown_table(Block("", heads, tuple(lines)))


def domain_sentences(matrix: Matrix, study: Study, severe: float = 0.1) -> list[str]:
    """Return what calibration on one domain does to a model, in words.

    Args:
        severe: loss, as a fraction of 1, from which a task counts as destroyed.
    """
    found = []
    for domain in matrix.domains:
        own, others = matrix.home(domain), matrix.away(domain)
        home = "" if own is None else f"{fixed(100 * own, signed=True)} points on its own tasks and "
        changes = [(matrix.change(domain, task), task) for task in matrix.tasks]
        known = sorted((change, task) for change, task in changes if change is not None)
        hurt = [
            f"{study.short[task]} ({fixed(100 * change, signed=True)})" for change, task in known if change <= -severe
        ]
        told = f"destroys {', '.join(hurt)}" if hurt else f"costs no task {100 * severe:.0f} points or more"
        away = "" if others is None else f"{fixed(100 * others, signed=True)} on the others"
        found.append(f"Calibration on **{markdown_cell(domain)}** alone gives {home}{away}; it {told}.")
    spread = [(matrix.of(method).overall(), method) for method in matrix.methods]
    known_spread = sorted((value, method) for value, method in spread if value is not None)
    if len(known_spread) > 1:
        (least, worst), (most, mildest) = known_spread[0], known_spread[-1]
        found.append(
            f"On tasks outside the calibration domain, {markdown_cell(worst)} suffers most "
            f"({fixed(100 * least, signed=True)} points) and {markdown_cell(mildest)} least "
            f"({fixed(100 * most, signed=True)})."
        )
    return found


def bullets(lines: Iterable[str]) -> str:
    """Return lines as a Markdown list, without empty ones."""
    return "\n".join(f"- {line}" for line in lines if line)
