"""The report: every table, page and figure of a folder of records, and nothing that is not in them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from analysis.averaging import average_seeds
from analysis.digest import digest
from analysis.figure_limits import too_many
from analysis.frame import compared_by_id, frame, scores_frame
from analysis.load import load
from analysis.page import page
from analysis.paper_pages import paper_pages
from analysis.ranking import FLOOR
from analysis.similarity import likenesses
from analysis.speed import speed_frame
from analysis.summary import messages
from analysis.table import csv, latex
from analysis.training import training_frame
from bench.records.derived import write_derived
from bench.records.record import Record
from methods.framework.errors import ConfigError


@dataclass(frozen=True)
class Report:
    """What was written.

    Args:
        page: the HTML leaderboard.
        figures: figures as PDF, SVG and PNG; empty where there was nothing to draw.
        tables: ``training.csv`` and ``speed.csv``, where there are runs before and after training, and timings.
        messages: what a reader should know: missing base, unreadable records, nothing complete.
        frame: one row a run, as in ``leaderboard.csv``.
        records: what it was made of.
    """

    page: Path
    markdown: Path
    csv: Path
    scores: Path
    latex: Path
    figures: tuple[Path, ...]
    tables: tuple[Path, ...]
    messages: tuple[str, ...]
    frame: pd.DataFrame
    records: tuple[Record, ...]


def report(
    folders: Path | Iterable[Path],
    out: Path,
    *,
    title: str = "Leaderboard of MoE compression",
    floor: float = FLOOR,
    figures: bool = True,
    papers: Path | None = None,
) -> Report:
    """Write leaderboard and figures of all records in ``folders`` into ``out``; the same records give the same bytes.

    Args:
        folders: one or several folders of records.
        out: folder to write into, made where it is missing; files of an earlier report are replaced.
        floor: retention below which runs are marked, 0 to 1.
        figures: whether to draw figures, into ``out/figures``.
        papers: folder with pages of papers, which the page leads to.

    Raises:
        RecordError: a folder of records does not exist, or ``out`` cannot be written.
        ConfigError: ``floor`` is not between 0 and 1, or there is no page in ``papers``.
    """
    if not 0 <= floor <= 1:
        raise ConfigError(
            f"floor is a retention between 0 and 1, found {floor:g}; 0.9 asks for 90 % of the base's score"
        )
    loaded, pages = load(folders), paper_pages(papers, out)
    compared = compared_by_id(loaded.records)
    runs = frame(loaded.records, floor, compared=compared)
    scores = scores_frame(loaded.records, compared=compared, order=runs)
    trained = training_frame(loaded.records, compared=compared)
    timed = speed_frame(loaded.records, compared=compared)
    alike = likenesses(loaded.records)
    told = [*messages(runs, loaded.problems), *too_many(runs)]
    rows = average_seeds(compared)
    texts = {
        "leaderboard.html": page(loaded, runs, scores, runs=rows, title=title, floor=floor, messages=told, pages=pages),
        "leaderboard.md": digest(
            loaded.records,
            runs,
            scores,
            trained=trained,
            timed=timed,
            alike=alike,
            title=title,
            floor=floor,
            problems=loaded.problems,
            origins=loaded.origins,
        ),
        "leaderboard.csv": csv(runs),
        "scores.csv": csv(scores),
        "leaderboard.tex": latex(runs),
    }
    more = {"training.csv": trained, "speed.csv": timed}
    drawn: dict[str, bytes] = {}
    if figures:
        from analysis.figures import draw

        drawn = draw(runs, scores, floor=floor, alike=alike)
    paths = {name: write_derived(out / name, text.encode("utf-8")) for name, text in texts.items()}
    return Report(
        page=paths["leaderboard.html"],
        markdown=paths["leaderboard.md"],
        csv=paths["leaderboard.csv"],
        scores=paths["scores.csv"],
        latex=paths["leaderboard.tex"],
        figures=tuple(write_derived(out / "figures" / name, content) for name, content in drawn.items()),
        tables=tuple(write_derived(out / name, csv(rows).encode("utf-8")) for name, rows in more.items() if len(rows)),
        messages=tuple(told),
        frame=runs,
        records=tuple(loaded.records),
    )
