"""``report``: leaderboard, tables and figures of stores."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from analysis.load import records_folder
from analysis.ranking import FLOOR
from analysis.report import Report
from analysis.report import report as write


def report(
    stores: str | Path | Iterable[str | Path],
    out: str | Path = "report",
    *,
    title: str = "moebench leaderboard",
    floor: float = FLOOR,
    figures: bool = True,
    papers: str | Path | None = None,
) -> Report:
    """Write leaderboard, tables and figures from records; the same records give the same bytes.

    Args:
        stores: one or several stores, or folders of records.
        out: folder to write to.
        title: heading of the page.
        floor: recovery below which a row is marked, a share of the base's score.
        figures: whether figures are drawn.
        papers: folder with pages that `moebench paper NAME all` wrote; the page leads to them.

    Raises:
        RecordError: a folder of records does not exist, or ``out`` cannot be written.
        ConfigError: ``floor`` is not between 0 and 1, or there is no page in ``papers``.
    """
    paths = map(Path, [stores] if isinstance(stores, (str, Path)) else stores)
    folders = [records_folder(path) for path in paths]
    return write(folders, Path(out), title=title, floor=floor, figures=figures, papers=Path(papers) if papers else None)
