"""The page of a study over seeds: which method wins where, from records alone.

``python -m analysis.study RECORDS... OUT`` writes it from folders of records.
"""

from __future__ import annotations

import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.digest import table as markdown_table
from analysis.formatting import fixed, slug
from analysis.load import load
from analysis.provenance import Block
from analysis.similarity import NOTE, Likeness, likenesses, similarity_block
from analysis.study_cells import AVERAGE, contrast, separated
from analysis.study_domains import Matrix, matrices
from analysis.study_layout import Study, Table, lay_out
from analysis.study_merging import LEGEND, Merging, merging, merging_tables
from analysis.study_text import (
    against,
    bullets,
    domain_sentences,
    domain_table,
    rank_block,
    score_table,
    steady,
    task_winners,
    twins,
    winner,
)
from analysis.table import markdown_cell, neutral
from bench.records.derived import write_derived
from methods.framework.errors import RecordError


@dataclass(frozen=True)
class StudyPage:
    """What was written.

    Args:
        scores: one line for each model, share, method and task.
        pairs: one line for each model, share and pair of methods: the difference of their averages.
        domains: one line for each model, share, method, calibration domain and task; None where nothing was
            calibrated on one domain.
    """

    page: Path
    scores: Path
    pairs: Path
    domains: Path | None
    figures: tuple[Path, ...]


def study_page(
    folders: Path | Iterable[Path], out: Path, *, title: str = "Which method wins where", figures: bool = True
) -> StudyPage:
    """Write page, tables and figures of the runs in ``folders`` into ``out``; the same records give the same bytes.

    Args:
        folders: one or several folders of records.
        out: folder to write into.
        title: heading of the page.
        figures: whether to draw figures, into ``out/figures``.

    Raises:
        RecordError: a folder does not exist, holds no complete compressed run, or ``out`` cannot be written.
    """
    loaded = load(folders)
    study = lay_out(loaded.records)
    if not study.tables:
        raise RecordError("no complete run of a compressed model is in these folders; run `moebench grid` first")
    found = matrices(study)
    alike = [one for one in likenesses(loaded.records) if one.corpus in ("", study.corpus)]
    merged = merging(study)
    drawn: dict[str, bytes] = {}
    if figures:
        from analysis.study_figures import draw_study

        drawn = draw_study(study, found, alike, merged)
    domains = _csv(_domain_rows(found)) if found else None
    page = _page(study, found, _alike(alike, merged, drawn), title, drawn, loaded.problems)
    return StudyPage(
        page=write_derived(out / "study.md", page.encode()),
        scores=write_derived(out / "scores.csv", _csv(_score_rows(study)).encode()),
        pairs=write_derived(out / "pairs.csv", _csv(_pair_rows(study)).encode()),
        domains=write_derived(out / "domains.csv", domains.encode()) if domains else None,
        figures=tuple(write_derived(out / "figures" / name, content) for name, content in drawn.items()),
    )


def _page(
    study: Study,
    found: Sequence[Matrix],
    alike: Sequence[str],
    title: str,
    drawn: dict[str, bytes],
    problems: Sequence[str],
) -> str:
    ranks, caveats = rank_block(study)
    parts = [f"# {markdown_cell(title)}", _lead(study)]
    parts += [f"> Left out: {markdown_cell(problem)}" for problem in problems]
    tables = [_short(table) for table in study.tables]
    short = [*tables, *steady(study), *caveats[:2], *(_worst(matrix, study) for matrix in found)]
    parts += ["## In short", bullets(short)]
    parts += [_image("overview", "loss of every method on every model and share", drawn)]
    parts += ["## Mean ranks", ranks, _LEGEND_RANKS, bullets(caveats)]
    parts += alike
    for model in study.models:
        parts += [f"## {markdown_cell(model)}"]
        parts += [_image(name, f"averages on {model}", drawn) for name in _of(drawn, "averages_", model)]
        for table in (one for one in study.tables if one.model == model):
            parts += [f"### keep {markdown_cell(table.keep)}"]
            parts += [
                bullets([winner(table), task_winners(table, study), against(table), twins(table)]),
                score_table(table, study),
            ]
    if found:
        parts += ["## Calibration on one domain", _LEGEND_DOMAINS]
        for matrix in found:
            parts += [f"### {markdown_cell(matrix.model)}, keep {markdown_cell(matrix.keep)}"]
            parts += [bullets(domain_sentences(matrix, study)), domain_table(matrix, study)]
            names = [name for prefix in ("domains_", "domains_by_method_") for name in _of(drawn, prefix, matrix.model)]
            keep = [name for name in names if name.endswith(matrix.keep)]
            parts += [_image(name, f"one domain against all, {matrix.model}", drawn) for name in keep]
    parts += ["## How the numbers were made", bullets(_NOTES), _unfinished(study)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _alike(alike: Sequence[Likeness], merged: Sequence[Merging], drawn: dict[str, bytes]) -> list[str]:
    """Return the section on how alike the experts are, and on merging against selection."""
    parts = ["## Similarity of experts", markdown_table(similarity_block(alike)), NOTE] if alike else []
    names = sorted(
        name.removesuffix(".svg") for name in drawn if name.startswith("similarity_") and name.endswith(".svg")
    )
    parts += [_image(name, "similarity of every two experts, layer by layer", drawn) for name in names]
    if merged:
        parts += ["## Merging against selection", _image("merging", "merging minus the best selection", drawn)]
        parts += [*merging_tables(merged, alike), LEGEND]
    return parts


_LEGEND_RANKS = (
    "Ranks go by the average, 1 the best, within a model and share (a *cell*); methods that miss cells stand last. "
    "*Leads*: cells in which the method is not separated from the best. The last two columns: cells in which it is "
    "separated from the random control."
)
_LEGEND_DOMAINS = (
    "Change in points when the calibration text is of one domain instead of all, the mean over the methods below, each "
    "with the same seeds on both sides. *own*: tasks of that domain; *others*: all other tasks."
)
_NOTES = (
    "A number is the mean over seeds in percent, ± half of the 95 % interval of that mean (Student t). Without ±, there "
    "was one seed, or no seed can change the result (a dash in the column *seeds*).",
    "Two methods are separated when the 95 % interval of their difference leaves out 0. It holds the error of the seeds, "
    "seed by seed where both have the same ones, and the error of the items; the items' errors of the two count as "
    "independent, which makes it if anything too wide.",
    "Bold: the best of a column and all that are not separated from it; nothing is bold where that is everyone.",
    "The average is the plain mean over all tasks of the table, the generative ones included.",
)


def _lead(study: Study) -> str:
    entries = [entry for table in study.tables for entry in table.entries]
    runs = sum(entry.row.runs for entry in entries) + sum(run.alone.row.runs for run in study.domains)
    seeds = Counter(", ".join(map(str, entry.row.seeds)) or "none that matters" for entry in entries)
    counted = "; ".join(f"{name} in {count}" for name, count in sorted(seeds.items()))
    shares = list(dict.fromkeys(table.keep for table in study.tables))
    text = f" Calibrated on {markdown_cell(study.corpus)}." if study.corpus else ""
    return (
        f"{len({entry.label for entry in entries})} methods on {len(study.models)} models at keep {', '.join(shares)}: "
        f"{runs} runs.{text} Rows by their seeds: {counted}."
    )


def _short(table: Table) -> str:
    return f"{markdown_cell(table.model)}, keep {markdown_cell(table.keep)}: {winner(table)}"


def _worst(matrix: Matrix, study: Study) -> str:
    changes = [
        (change, domain, task)
        for domain in matrix.domains
        for task in matrix.tasks
        if not matrix.is_home(domain, task) and (change := matrix.change(domain, task)) is not None
    ]
    if not changes:
        return ""
    change, domain, task = min(changes)
    where = f"{markdown_cell(matrix.model)}, keep {markdown_cell(matrix.keep)}, calibrated on one domain"
    if change >= 0:
        return f"{where}: no domain alone harms the task of another."
    return (
        f"{where}: the worst harm is that of {markdown_cell(domain)} to {markdown_cell(study.short[task])}, "
        f"{fixed(100 * change, signed=True)} points over {len(matrix.methods)} methods."
    )


def _of(drawn: dict[str, bytes], prefix: str, model: str) -> list[str]:
    names = (name.removesuffix(".svg") for name in drawn if name.endswith(".svg"))
    return [name for name in names if name.startswith(f"{prefix}{slug(model)}")]


def _image(name: str, text: str, drawn: dict[str, bytes]) -> str:
    return f"![{markdown_cell(text)}](figures/{name}.svg)" if f"{name}.svg" in drawn else ""


def _unfinished(study: Study) -> str:
    counts: Counter[tuple[str, ...]] = Counter()
    for row in study.unfinished:
        record = row.record
        counts[record.model.name, record.title, record.status, record.reason or ""] += row.runs
    lines = tuple((str(count), *what) for what, count in sorted(counts.items()))
    if not lines:
        return ""
    heads = ("runs", "model", "method", "status", "reason")
    return "## Runs that did not complete\n\n" + markdown_table(Block("", heads, lines))


def _score_rows(study: Study) -> list[dict[str, object]]:
    rows = []
    for table in study.tables:
        entries = [*([table.base] if table.base else []), *table.entries]
        for entry in entries:
            for column in table.columns:
                own = entry.cells.get(column)
                if own is None:
                    continue
                place = table.entries.index(entry) if entry in table.entries else None
                rows.append(
                    {
                        "model": table.model,
                        "keep": table.keep,
                        "method": entry.method,
                        "label": entry.label,
                        "task": column or "average",
                        "seeds": 0 if own.seedless else own.mean.n,
                        "mean": own.mean.value,
                        "half": own.mean.half,
                        "item_error": own.error,
                        "leads": None if place is None else place in table.leading[column],
                    }
                )
    return rows


def _pair_rows(study: Study) -> list[dict[str, object]]:
    """Return the difference of the averages of every two methods of a table, with its 95 % interval."""
    rows: list[dict[str, object]] = []
    for table in study.tables:
        known = [(entry.label, own) for entry in table.entries if (own := entry.cells.get(AVERAGE)) is not None]
        for (first, one), (second, other) in itertools.combinations(known, 2):
            found = contrast(one, other)
            rows.append(
                {
                    "model": table.model,
                    "keep": table.keep,
                    "first": first,
                    "second": second,
                    "difference": found.value,
                    "low": found.low,
                    "high": found.high,
                    "separated": separated(one, other),
                }
            )
    return rows


def _domain_rows(found: Sequence[Matrix]) -> list[dict[str, object]]:
    rows = []
    for matrix in found:
        for run in matrix.runs:
            for task in (AVERAGE, *matrix.tasks):
                alone, both = run.alone.cells.get(task), run.all.cells.get(task)
                if alone is None or both is None:
                    continue
                change = contrast(alone, both)
                rows.append(
                    {
                        "model": run.model,
                        "keep": run.keep,
                        "method": run.alone.method,
                        "label": run.alone.label,
                        "calibrated_on": run.domain,
                        "task": task or "average",
                        "mean": alone.mean.value,
                        "all_domains": both.mean.value,
                        "change": change.value,
                        "low": change.low,
                        "high": change.high,
                    }
                )
    return rows


def _csv(rows: Sequence[dict[str, object]]) -> str:
    buffer = io.StringIO()
    neutral(pd.DataFrame(list(rows))).to_csv(buffer, index=False, lineterminator="\n")
    return buffer.getvalue()


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit("usage: python -m analysis.study RECORDS... OUT")
    print(study_page([Path(name) for name in sys.argv[1:-1]], Path(sys.argv[-1])).page)
