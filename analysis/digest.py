"""The leaderboard as one Markdown document."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from analysis.protocol import ACCURACIES
from analysis.provenance import Block, provenance
from analysis.summary import failures, lead, messages, notes
from analysis.table import boards, markdown, markdown_cell, run_name, task_error, task_text
from bench.record import Record


def digest(
    records: Sequence[Record],
    frame: pd.DataFrame,
    scores: pd.DataFrame,
    *,
    title: str,
    floor: float,
    problems: tuple[str, ...] = (),
) -> str:
    """Return the document: leaderboard, every task, failures, and the protocol."""
    parts = [f"# {markdown_cell(title)}", markdown_cell(lead(frame))]
    parts += [f"> {markdown_cell(message)}" for message in messages(frame, problems)]
    if not len(frame):
        return "\n\n".join(parts) + "\n"
    if (frame["status"] == "complete").any():
        parts += ["## Leaderboard", markdown(frame).rstrip()]
        parts += [
            "≈: difference to the next rank within noise. ?: the next rank was measured with other seeds. "
            "▼: retention below the floor. Intervals: 95 %."
        ]
        parts += ["## Tasks", *_tasks(frame, scores)]
    bad = failures(frame)
    if bad.rows:
        parts += ["## Refused, failed and cancelled runs", table(bad)]
    parts += ["## Protocol", "\n".join(f"- {markdown_cell(line)}" for line in notes(floor))]
    for block in provenance(records):
        parts += [f"### {block.title}", table(block)]
    return "\n\n".join(parts) + "\n"


def table(block: Block) -> str:
    """Return ``block`` as a Markdown table."""
    lines = [block.head, tuple("---" for _ in block.head), *block.rows]
    return "\n".join("| " + " | ".join(map(markdown_cell, line)) + " |" for line in lines)


def _tasks(frame: pd.DataFrame, scores: pd.DataFrame) -> list[str]:
    speaking = scores[scores["headline"].astype(bool)].astype(object)
    found = {(row["id"], row["task"]): row for row in speaking.to_dict("records")}
    parts = []
    for heading, rows in boards(frame):
        tasks = sorted({task for run, task in found if any(row["id"] == run for row in rows)})
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
    return parts
