"""Every interval covers what docs/trust.md says: cells of its table, on fewer simulated runs."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from tests.support.coverage import correlated, of_average, of_items, of_perplexity, of_timing, table
from tests.support.places import ROOT

pytestmark = pytest.mark.thorough


def test_items_cover_at_every_rate() -> None:
    assert of_items(20)[0] >= 0.94


@pytest.mark.parametrize(
    ("documents", "kind", "least"), [(10, "normal", 0.93), (20, "correlated", 0.93), (20, "skewed", 0.9)]
)
def test_perplexities_cover(documents: int, kind: str, least: float) -> None:
    assert of_perplexity(documents, kind, 300) >= least


def test_averages_of_rare_changes_cover() -> None:
    assert of_average(20, 4, 0.02, 300) >= 0.97


def test_unmarked_speeds_cover() -> None:
    held, share = of_timing(partial(correlated, np.random.default_rng(4), 0.3, 0.02), 300)
    assert held >= 0.95 and share > 0.7


def test_the_page_holds_every_line_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interval and case of each line; the exact numbers of 20 items are those that the page states."""
    monkeypatch.setattr("tests.support.coverage.of_items", lambda items: of_items(20) if items == 20 else (1.0, 1.0))
    page = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    lines = list(table(0.01))
    missing = [line for line in lines if f"| {line[0]} | {line[1]} |" not in page]
    assert len(lines) == 13 and not missing
    assert f"| {' | '.join(lines[0])} |" in page
