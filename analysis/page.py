"""The leaderboard as one self-contained HTML page: style, script, data and plotly inside, nothing loaded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from analysis.columns import describe
from analysis.explorer import explorer
from analysis.formatting import fixed, interval, known, p_value, percent
from analysis.heads import GROUPS, Head, heads, not_timed
from analysis.multiplicity import runs_by_chance, tasks_by_chance
from analysis.protocol import ACCURACIES
from analysis.provenance import Block, provenance
from analysis.published import beside, cells
from analysis.separation import best
from analysis.summary import board_titles, cards, failures, lead, messages, notes
from analysis.table import Row, boards, rows_of, task_error, task_text, text_of
from bench.records.record import RatioInfo, Record

_TEMPLATES = Path(__file__).parent / "templates"
_WORDS = ("model", "method", "found_by")


def page(
    records: Sequence[Record],
    frame: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    title: str,
    floor: float,
    problems: tuple[str, ...] = (),
) -> str:
    """Return the page; ``frame`` and ``scores`` are those of ``records``.

    Args:
        records: all that were read.
        frame: their runs.
        scores: their scores.
        title: heading of the page.
        floor: retention below which runs are marked, 0 to 1.
        problems: files that could not be read, and why.
    """
    from plotly.offline import get_plotlyjs

    complete = rows_of(frame[(frame["status"] == "complete").astype(bool)]) if len(frame) else []
    columns = heads(complete, scores)
    plot = explorer(frame, scores) if complete else None
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("leaderboard.html.j2").render(
        title=title,
        lead=lead(frame),
        floor=percent(floor, digits=0),
        messages=messages(frame, problems),
        cards=cards(frame, floor),
        columns=columns,
        groups={key: name for key, name in GROUPS.items() if any(head.group == key for head in columns)},
        rows=_rows(complete, columns, scores),
        boards=board_titles(frame),
        chances=_chances(frame, scores) if complete else [],
        failures=failures(frame),
        beside=_beside(frame),
        notes=notes(floor),
        blocks=provenance(records),
        glossary=Block("Columns", ("column", "unit", "meaning"), tuple(describe())),
        plot=plot if plot and plot["qualities"] else None,
        data=script_data(plot),
        style=_asset("leaderboard.css"),
        behaviour=_asset("leaderboard.js"),
        plotting=_asset("plot.js"),
        plotly=Markup(get_plotlyjs()),
    )


def script_data(value: object) -> Markup:
    """Return ``value`` as JSON that is safe inside a ``script`` element."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def _asset(name: str) -> Markup:
    return Markup((_TEMPLATES / name).read_text(encoding="utf-8"))


def _rows(complete: list[dict[str, Any]], columns: list[Head], scores: pd.DataFrame) -> list[dict[str, Any]]:
    names = {row["board"] for row in complete}
    bests = {name: best([row for row in complete if row["board"] == name]) for name in names}
    by_run: dict[str, list[dict[str, Any]]] = {}
    for score in rows_of(scores):
        by_run.setdefault(score["id"], []).append(score)
    found = []
    for place, row in enumerate(complete):
        first = place > 0 and complete[place - 1]["board"] != row["board"]
        found.append(
            {
                "board": row["board"],
                "floor": "below" if row["below_floor"] is True else "",
                "kind": " ".join(name for name, on in (("base", row["is_base"]), ("first", first)) if on),
                "cells": [_cell(head, row, bests[row["board"]]) for head in columns],
                "tasks": _task_block(by_run.get(row["id"], [])),
                "facts": _facts(row),
            }
        )
    return found


def _chances(frame: pd.DataFrame, scores: pd.DataFrame) -> list[tuple[str, str]]:
    """Return for each board how many of its differences chance alone would make."""
    found = []
    for name, rows in boards(frame):
        ids = {row["id"] for row in rows}
        single = [score for score in rows_of(scores) if score["id"] in ids]
        if told := " ".join(part for part in (runs_by_chance(rows), tasks_by_chance(single)) if part):
            found.append((name, told))
    return found


def _cell(head: Head, row: Row, bests: dict[str, str]) -> dict[str, str]:
    value = head.value(row)
    marks = {
        "stick": head.name == "method",
        "word": head.name in _WORDS,
        "rank": head.name == "rank",
        "best": bests.get(head.name) == row["id"],
        "floor": head.name == "retention" and row["below_floor"] is True,
        "why": head.name == "timing_reason",
    }
    return {
        "name": head.name,
        "text": head.text(row),
        "sub": head.sub(row),
        "group": head.group,
        "hint": head.hint(row),
        "value": "" if value is None else repr(value) if isinstance(value, float) else str(value),
        "style": " ".join(name for name, on in marks.items() if on),
    }


def _task_block(scores: list[dict[str, Any]]) -> Block:
    lines = []
    for score in scores:
        accuracy = score["metric"] in ACCURACIES
        scale, digits = (100.0, 1) if accuracy else (1.0, 2)
        name = score["metric"] + ("" if score["filter"] == "none" else f", {score['filter']}")
        change = (
            percent(score["difference"], signed=True) if accuracy else fixed(score["difference"], digits, signed=True)
        )
        ends = interval(score["difference_low"], score["difference_high"], scale, digits, True)
        lines.append(
            (
                score["task"],
                name,
                task_text(score["value"], task_error(score), accuracy),
                task_text(score["base"], None, accuracy),
                f"{change} {ends}".rstrip(),
                p_value(score["p"]),
                p_value(score["p_holm"]),
                text_of(score["interval"]),
                text_of(score["test"]),
                f"{score['n']:,}",
            )
        )
    head = ("task", "metric", "score", "base", "Δ base", "p", "Holm", "interval by", "p by", "items")
    return Block("Tasks", head, tuple(lines))


def _facts(row: Row) -> list[tuple[str, str]]:
    facts = [
        ("Run", row["id"]),
        ("Registry name", text_of(row["method"])),
        ("Plan", text_of(row["plan"])),
        ("Found by", text_of(row["found_by"])),
        ("Calibrated on", text_of(row["corpus"])),
        ("Seeds", text_of(row["seed_set"])),
        ("Quality measured", text_of(row["realisation"])),
        ("CPU seconds", f"{row['seconds']:.1f}" if known(row["seconds"]) else ""),
        ("Not timed", not_timed(row)),
        ("Speeds are", text_of(row["timing_marks"])),
        ("Pairing", text_of(row["pairing"])),
        ("Ended", row["created"]),
    ]
    return [(name, value) for name, value in facts if value]


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
