"""The leaderboard as one Markdown document."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from analysis import speed, training
from analysis.multiplicity import gains_by_chance, tasks_by_chance
from analysis.plain_rows import rows_of
from analysis.protocol import ACCURACIES
from analysis.provenance import Block, provenance
from analysis.similarity import NOTE, Likeness, similarity_block
from analysis.summary import failures, lead, messages, notes
from analysis.table import Row, board_names, boards, markdown, markdown_cell, run_name, task_error, task_text
from bench.records.record import Record


def digest(
    records: Sequence[Record],
    frame: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    trained: pd.DataFrame | None = None,
    timed: pd.DataFrame | None = None,
    alike: Sequence[Likeness] = (),
    title: str,
    floor: float,
    problems: tuple[str, ...] = (),
    origins: Mapping[str, str] | None = None,
) -> str:
    """Return the document: leaderboard, before and after training, speed, every task, failures, and the protocol.

    Args:
        trained: runs before and after training (``analysis.training.training_frame``); None: no section.
        timed: measured and predicted speed (``analysis.speed.speed_frame``); None: no section.
        alike: how alike experts are (``analysis.similarity.likenesses``); empty: no section.
        origins: what the store of each run is called, by id; empty or None where there is one alone.
    """
    parts = [f"# {markdown_cell(title)}", markdown_cell(lead(frame))]
    parts += [f"> {markdown_cell(message)}" for message in messages(frame, problems)]
    if not len(frame):
        return "\n\n".join(parts) + "\n"
    if (frame["status"] == "complete").any():
        names = board_names(frame)
        parts += ["## Leaderboard", markdown(frame).rstrip()]
        parts += [
            "≈: difference to the next rank within noise. ?: the next rank was measured with other seeds. "
            "▼: retention below the floor. Bold: the best of its column, separated from all others of its model; a speed also "
            "from the base's, and unmarked. †: the difference to the base survives Holm's correction over all runs of the "
            "model at that share. °: an interval of an earlier version, too short where few items changed. Intervals: 95 %."
        ]
        parts += [*_training(trained, names), *_speed(timed, names), *_alike(alike), "## Tasks", *_tasks(frame, scores)]
    bad = failures(frame)
    if bad.rows:
        parts += ["## Refused, failed and cancelled runs", table(bad)]
    parts += ["## Protocol", "\n".join(f"- {markdown_cell(line)}" for line in notes(floor))]
    for block in provenance(records, origins):
        parts += [f"### {block.title}", table(block)]
    return "\n\n".join(parts) + "\n"


def _training(rows: pd.DataFrame | None, names: Mapping[str, str]) -> list[str]:
    lines = training.training_lines(rows) if rows is not None else {}
    parts: list[str] = []
    for board in lines:
        told = gains_by_chance([row for row in rows_of(rows) if row["board"] == board]) if rows is not None else ""
        parts += [*_section(names[board], training.HEAD, lines[board]), *([markdown_cell(told)] if told else [])]
    return ["## Before and after training", *parts, training.NOTE] if parts else []


def _speed(rows: pd.DataFrame | None, names: Mapping[str, str]) -> list[str]:
    lines = speed.speed_lines(rows) if rows is not None else {}
    parts = [part for board in lines for part in _section(names[board], speed.HEAD, lines[board])]
    return ["## Speed: measured beside predicted", *parts, speed.NOTE] if parts else []


def _alike(found: Sequence[Likeness]) -> list[str]:
    return ["## Similarity of experts", table(similarity_block(found)), NOTE] if found else []


def _section(name: str, head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> list[str]:
    return [f"### {markdown_cell(name)}", table(Block("", head, tuple(lines)))]


def table(block: Block) -> str:
    """Return ``block`` as a Markdown table."""
    lines = [block.head, tuple("---" for _ in block.head), *block.rows]
    return "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines)


_READ = ("id", "task", "metric", "headline", "value", "stderr", "seeds", "seed_half", "p")


def _tasks(frame: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    every: dict[str, list[Row]] = {}
    for row in rows_of(scores[[*_READ]]):
        every.setdefault(row["id"], []).append(row)
    found = {(run, one["task"]): one for run, own in every.items() for one in own if one["headline"]}
    parts = []
    for heading, rows in boards(frame):
        own = [one for row in rows for one in every.get(row["id"], [])]
        tasks = sorted({one["task"] for one in own if one["headline"]})
        lines = []
        for row in rows:
            line = [run_name(row)]
            for task in tasks:
                score = found.get((row["id"], task))
                known = task_text(score["value"], task_error(score), score["metric"] in ACCURACIES) if score else "–"
                line.append(known)
            lines.append(tuple(line))
        if tasks:
            parts += [f"### {markdown_cell(heading)}", table(Block("", ("method", *tasks), tuple(lines)))]
            told = tasks_by_chance(own)
            parts += [markdown_cell(told)] if told else []
    return parts
