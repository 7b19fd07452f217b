"""The rows of the page as data: what stands in each cell, what it sorts and filters by, and what opens below a row."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup

from analysis.beside import Beside
from analysis.comparison import Comparison
from analysis.formatting import fixed, interval, known, p_value, percent
from analysis.heads import Head, not_timed
from analysis.method_families import FAMILIES, family_of
from analysis.paper_pages import PaperPage, pages_about
from analysis.protocol import ACCURACIES
from analysis.separation import best
from analysis.table import Row, task_error, task_text, text_of
from bench.records.again import command, open_ends
from bench.records.record import Record
from bench.records.usual import default_knobs, source_of

BUDGETS = (0.9, 0.75, 0.5, 0.25)
"""Shares of the base's bytes that a filter offers."""

TASK_HEAD = ("task", "metric", "score", "base", "Δ base", "p", "Holm", "interval by", "p by", "items")
SCORES_READ = (
    *("id", "task", "metric", "filter", "headline", "value", "stderr", "n", "seeds", "seed_half", "base"),
    *("difference", "difference_low", "difference_high", "p", "p_holm", "test", "interval"),
)
"""Columns of the frame of scores that a page reads."""

_WORDS = ("model", "method", "found_by")


def packed(value: object) -> Markup:
    """Return ``value`` as JSON, compressed and in base64, which no text can break out of."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return Markup(base64.b64encode(zlib.compress(text.encode(), 6)).decode())


def unpacked(text: str) -> Any:
    """Return what ``packed`` made ``text`` of."""
    return json.loads(zlib.decompress(base64.b64decode(text)))


def board_data(complete: Sequence[Row], columns: Sequence[Head], models: Mapping[str, str]) -> dict[str, Any]:
    """Return cells column by column, and what rows are filtered by.

    Args:
        complete: rows of complete runs, in the order of the table.
        columns: of the table.
        models: family of models by board.
    """
    boards = list(dict.fromkeys(row["board"] for row in complete))
    places = {board: place for place, board in enumerate(boards)}
    by_board: dict[str, list[Row]] = {}
    for row in complete:
        by_board.setdefault(row["board"], []).append(row)
    bests = {board: best(rows) for board, rows in by_board.items()}
    return {
        "boards": boards,
        "board": [places[row["board"]] for row in complete],
        "base": [int(row["is_base"]) for row in complete],
        "below": [int(row["below_floor"] is True) for row in complete],
        "kind": ["" if row["is_base"] else family_of(row) for row in complete],
        "family": [models[board] for board in boards],
        "share": [round(row["keep_bytes"], 4) if known(row["keep_bytes"]) else None for row in complete],
        "id": [row["id"] for row in complete],
        "cells": [_column(head, complete, bests) for head in columns],
    }


def _column(head: Head, complete: Sequence[Row], bests: Mapping[str, dict[str, str]]) -> dict[str, Any]:
    told: dict[str, Any] = {"text": [head.text(row) for row in complete], "place": _order(head, complete)}
    for name, text in (("sub", head.sub), ("hint", head.hint)):
        values = [text(row) for row in complete]
        if any(values):
            told[name] = values
    marks = [place for place, row in enumerate(complete) if bests[row["board"]].get(head.name) == row["id"]]
    if marks:
        told["best"] = marks
    return told


def _order(head: Head, complete: Sequence[Row]) -> list[int]:
    """Return the place of each row's value among those of the column, from 0; -1 where there is none."""
    values = [head.value(row) for row in complete]
    if any(isinstance(value, str) for value in values):
        values = [str(value).casefold() if known(value) and value != "" else None for value in values]
    distinct = {value: place for place, value in enumerate(sorted({value for value in values if known(value)}))}
    return [distinct[value] if known(value) else -1 for value in values]


def styles(head: Head) -> str:
    """Return the classes of a column's cells."""
    marks = {
        "stick": head.name == "method",
        "word": head.name in _WORDS,
        "rank": head.name == "rank",
        "retention": head.name == "retention",
        "why": head.name == "timing_reason",
    }
    return " ".join(name for name, on in marks.items() if on)


def kinds(complete: Sequence[Row]) -> dict[str, str]:
    """Return the kinds of methods among the rows, with their names."""
    there = {family_of(row) for row in complete if not row["is_base"]}
    return {key: look.label for key, look in FAMILIES.items() if key in there}


def details(
    complete: Sequence[Row],
    scores: Mapping[str, Sequence[Row]],
    runs: Mapping[str, Comparison],
    near: Beside,
    origins: Mapping[str, str],
    pages: Sequence[PaperPage] = (),
) -> dict[str, Any]:
    """Return what opens below each row: tasks, facts, command, plan; and the items by which two rows are compared.

    Args:
        complete: rows of complete runs, in the order of the table.
        scores: scores by run.
        runs: the rows beside their bases, by id.
        near: plans and items of some runs.
        origins: what each run's store is called, by id; empty where there is one store alone.
        pages: of papers, for the rows whose methods follow them.
    """
    rows = []
    for row in complete:
        members = member_records(runs[row["id"]])
        first = members[0]  # of several seeds, whose plans and items differ
        one: dict[str, Any] = {
            "tasks": [_task_line(score) for score in scores.get(row["id"], ())],
            "facts": _facts(row, members, origins),
            "run": first.id,
            "command": command(first, default_knobs(first.method)),
        }
        if ends := open_ends(first):
            one["open"] = "; ".join(ends)
        if about := pages_about(source_of(first.method or ""), pages):
            one["pages"] = about
        if first.id in near.plans:
            one["plan"] = near.plans[first.id]
        if len(members) == 1 and first.id in near.items:
            one["items"] = near.items[first.id]
        rows.append(one)
    return {"head": TASK_HEAD, "protocols": [list(one[:3]) for one in near.protocols], "rows": rows}


def member_records(run: Comparison) -> tuple[Record, ...]:
    """Return the single records of a row, one for each seed."""
    return tuple(member.record for member in getattr(run, "members", (run,)))


def _task_line(score: Row) -> tuple[str, ...]:
    accuracy = score["metric"] in ACCURACIES
    scale, digits = (100.0, 1) if accuracy else (1.0, 2)
    name = score["metric"] + ("" if score["filter"] == "none" else f", {score['filter']}")
    change = percent(score["difference"], signed=True) if accuracy else fixed(score["difference"], digits, signed=True)
    ends = interval(score["difference_low"], score["difference_high"], scale, digits, True)
    return (
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


def _facts(row: Row, members: Sequence[Record], origins: Mapping[str, str]) -> list[tuple[str, str]]:
    facts = [
        ("Run", ", ".join(one.id for one in members)),
        ("From", ", ".join(sorted({origins[one.id] for one in members if one.id in origins}))),
        ("Registry name", text_of(row["method"])),
        ("Source", source_of(text_of(row["method"]))),
        ("All knobs", text_of(row["knobs"])),
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
