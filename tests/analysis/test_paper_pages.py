"""Pages of papers beside a report."""

from __future__ import annotations

from pathlib import Path

import pytest

from analysis.paper_pages import PaperPage, pages_about, paper_pages
from analysis.report import report
from bench.records.record import write_record
from methods.framework.errors import ConfigError
from tests.support.pages import held
from tests.support.records import record

PAGE = """# Router-weighted <pruning>

arXiv 2510.13999 (its rows are quoted by others). Written by a command.

See also arXiv 2404.05089.
"""


def test_rows_lead_to_the_pages_of_their_papers(tmp_path: Path) -> None:
    papers, out = tmp_path / "papers of ours", tmp_path / "some" / "report"
    papers.mkdir()
    (papers / "reap.md").write_text(PAGE)
    (papers / "notes.md").write_text("no heading")
    (found,) = paper_pages(papers, out)
    assert found == PaperPage(
        "Router-weighted <pruning>", "../../papers%20of%20ours/reap.md", frozenset({"2510.13999"})
    ), "what it is about stands in its first paragraph"
    assert pages_about("arXiv 2510.13999, baseline", [found]) == [(found.title, found.address)]
    assert pages_about("arXiv 2404.05089", [found]) == [] == pages_about("control", [found])
    for one in (record(None), record("reap"), record("random")):
        write_record(one, tmp_path / "records")
    page = report(tmp_path / "records", out, figures=False, papers=papers).page.read_text()
    assert f'<a href="{found.address}">Router-weighted &lt;pruning&gt;</a>' in page
    told = {row["run"]: row.get("pages") for row in held(page, "details")["rows"]}
    assert sorted(filter(None, told.values())) == [[[found.title, found.address]]]
    assert "Its tables" not in report(tmp_path / "records", out, figures=False).page.read_text()


def test_a_folder_without_pages_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no page of a paper; `moebench paper NAME all --out"):
        paper_pages(tmp_path, tmp_path)
