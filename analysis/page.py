"""The leaderboard as one self-contained HTML page: style, script, data and plotly inside, nothing loaded."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.beside import beside as beside_records
from analysis.columns import describe
from analysis.comparison import Comparison
from analysis.explorer import explorer
from analysis.formatting import known, percent
from analysis.heads import GROUPS, heads
from analysis.load import Loaded
from analysis.multiplicity import runs_by_chance, tasks_by_chance
from analysis.page_rows import BUDGETS, SCORES_READ, board_data, details, kinds, member_records, packed, styles
from analysis.paper_pages import PaperPage
from analysis.plain_rows import rows_of
from analysis.provenance import Block, provenance
from analysis.published import beside, cells
from analysis.summary import board_titles, cards, failures, lead, notes
from analysis.table import boards
from bench.records.plan_map import LEGEND
from bench.records.record import RatioInfo, Record

_TEMPLATES = Path(__file__).parent / "templates"


def page(
    loaded: Loaded,
    frame: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    runs: Sequence[Comparison],
    title: str,
    floor: float,
    messages: Sequence[str] = (),
    pages: Sequence[PaperPage] = (),
) -> str:
    """Return the page; ``frame``, ``scores`` and ``runs`` are those of ``loaded``.

    Args:
        loaded: all records that were read, and where they lie.
        frame: their runs.
        scores: their scores.
        runs: their rows beside their bases.
        title: heading of the page.
        floor: retention below which runs are marked, 0 to 1.
        messages: what a reader should know first.
        pages: of papers, which the page leads to.
    """
    from plotly.offline import get_plotlyjs

    complete = rows_of(frame[(frame["status"] == "complete").astype(bool)]) if len(frame) else []
    plot = explorer(frame, scores) if complete else None
    every = rows_of(scores[[*SCORES_READ]])
    columns = heads(complete, every)
    by_run: dict[str, list[dict[str, Any]]] = {}
    for score in every:
        by_run.setdefault(score["id"], []).append(score)
    rows = {row.record.id: row for row in runs}
    near = beside_records(_by_importance(complete, rows), loaded.places)
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    families = {row["board"]: row["family"] for row in complete}
    return environment.get_template("leaderboard.html.j2").render(
        title=title,
        lead=lead(frame),
        floor=percent(floor, digits=0),
        messages=messages,
        cards=cards(frame, floor),
        columns=[(head, styles(head)) for head in columns],
        groups={key: name for key, name in GROUPS.items() if any(head.group == key for head in columns)},
        count=len(complete),
        boards=board_titles(frame),
        families=sorted(set(families.values())),
        kinds=kinds(complete),
        budgets=[(share, percent(share, digits=0)) for share in BUDGETS],
        legend=LEGEND,
        table=packed(board_data(complete, columns, families)),
        details=packed(details(complete, by_run, rows, near, loaded.origins, pages)),
        pages=pages,
        chances=_chances(frame, by_run) if complete else [],
        failures=failures(frame),
        beside=_beside(frame),
        notes=notes(floor),
        blocks=provenance(loaded.records, loaded.origins),
        glossary=Block("Columns", ("column", "unit", "meaning"), tuple(describe())),
        plot=plot if plot and plot["qualities"] else None,
        data=packed(plot),
        style=_asset("leaderboard.css"),
        behaviour=[_asset(name) for name in ("leaderboard.js", "pairs.js", "details.js")],
        plotting=_asset("plot.js"),
        plotly=Markup(get_plotlyjs()),
    )


def _by_importance(complete: Sequence[dict[str, Any]], rows: Mapping[str, Comparison]) -> list[Record]:
    """Return single runs, bases first, then by rank, one of each board after the other."""
    ordered = sorted(complete, key=lambda row: (not row["is_base"], row["rank"] if known(row["rank"]) else math.inf))
    return [record for row in ordered for record in member_records(rows[row["id"]])[:1]]


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _chances(frame: pd.DataFrame, scores: Mapping[str, list[dict[str, Any]]]) -> list[tuple[str, str]]:
    """Return for each board how many of its differences chance alone would make."""
    found = []
    for name, rows in boards(frame):
        single = [score for row in rows for score in scores.get(row["id"], [])]
        if told := " ".join(part for part in (runs_by_chance(rows), tasks_by_chance(single)) if part):
            found.append((name, told))
    return found


def _beside(frame: pd.DataFrame) -> dict[str, list[Block]]:
    found: dict[str, list[Block]] = {}
    for model in sorted(set(frame["model"])) if len(frame) else []:
        tables = []
        for table in beside(model).values():
            head, lines = cells(table)
            source, unit = table["source"].iloc[0], table["unit"].iloc[0]
            ratio = ""
            if "ratio_of" in table:
                counted = RatioInfo.model_fields[table["ratio_of"].dropna().iloc[0]].description
                ratio = f"; ratio: % removed {counted}"
            title = f"{source} ({unit}{ratio})"
            tables.append(Block(title, tuple(head), tuple(tuple(line) for line in lines)))
        if tables:
            found[model] = tables
    return found
