"""How commands end: failures are counted and end with 1, refusals by design end with 0, Ctrl-C says what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from rich.console import Console

from bench.cli import app
from bench.commands.outcome import end_with_outcome
from bench.records.record import Record, write_record
from bench.running.run import Run
from tests.bench.running.test_run import IMPOSSIBLE, REAP, config, execute


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> list[Record]:
    folder = tmp_path_factory.mktemp("outcome")
    return execute(config(folder, IMPOSSIBLE), folder)[0]


def ending(records: list[Record]) -> tuple[int, str]:
    console = Console(record=True, quiet=False, file=open("/dev/null", "w"), width=200)  # noqa: SIM115 - as long as it
    try:
        end_with_outcome(records, console)
    except typer.Exit as end:
        return end.exit_code, console.export_text()
    return 0, console.export_text()


def test_what_failed_is_counted_and_ends_with_one(records: list[Record]) -> None:
    base, refused = records
    failed = base.model_copy(update={"id": "a" * 16, "status": "failed", "reason": "full disk", "title": "REAP"})
    again = base.model_copy(update={"id": "a" * 16 + "-2", "title": "REAP"})
    assert ending([base]) == (0, "")
    status, text = ending([base, refused])
    assert status == 0 and "1 of 2 refused by design" in text and "smallest keep" in text
    status, text = ending([base, refused, failed])
    assert status == 1 and "1 of 3 failed" in text and "failed: REAP: full disk" in text
    assert ending([again, base, failed])[0] == 0, "a later try completed"


def test_a_report_of_failures_ends_with_one(records: list[Record], tmp_path: Path) -> None:
    call = ["report", str(tmp_path), "--out", str(tmp_path / "out")]
    write_record(records[0], tmp_path / "records")
    write_record(records[1], tmp_path / "records")
    assert status_of(call) == 0
    write_record(records[1].model_copy(update={"id": "a" * 16, "status": "failed"}), tmp_path / "records")
    assert status_of(call) == 1 and (tmp_path / "out" / "leaderboard.html").exists()


def test_ctrl_c_says_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(self: Run) -> list[Record]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "execute", stopped)
    call = [
        "run",
        "--model",
        "pocket-mixtral",
        "--method",
        REAP.name,
        "--store",
        str(tmp_path),
        "--no-time",
        "--track",
        "disabled",
    ]
    assert status_of(call) == 130
    assert "kept in the store; the same command goes on" in capsys.readouterr().err


def status_of(call: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        app(call)
    return int(end.value.code or 0)
