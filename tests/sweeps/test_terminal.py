"""A sweep in the terminal."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

import sweeps.opening
from sweeps.resident import Resident
from sweeps.terminal import show_sweep
from tests.support.tiny_sweeps import sweep


def test_the_terminal_shows_trials_and_the_front(
    home: Path, resident: Resident, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps.opening, "open_resident", lambda *_: resident)
    console = Console(record=True, width=200, file=io.StringIO())
    result = show_sweep(sweep(home, trials=3), tmp_path, console)
    text = console.export_text()
    best = min(result.rows, key=lambda row: row.scores["nll"])
    assert all(f"trial {row.number:4d}  nll {row.scores['nll']:.5g}" in text for row in result.rows)
    assert str(best.plan)[:16] in text and "3 complete, 0 refused, 0 failed" in text
